"""What each family of embedders is recognised by, and the contract that follows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoint_folders as made
import pytest
from checkpoint_folders import config, dense, limited, module, pooled, prompted, transformer, unigram, vocabulary, write

from embedmux.server.checkpoint.decoders import DECODERS
from embedmux.server.checkpoint.encoders import ENCODERS
from embedmux.server.checkpoint.families import GENERIC
from embedmux.server.checkpoint.read import read_contract
from embedmux.server.contract import Contract, LateContract, Prompts
from embedmux.server.records import Output, Pooling

SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
REPRESENT = "Represent this sentence for searching relevant passages: "
NOMIC = {
    "query": "search_query: ", "document": "search_document: ", "classification": "classification: ",
    "clustering": "clustering: ",
}  # fmt: skip
JINA = {"query": "Query: ", "document": "Document: "}
V5_CODE = {"AutoModel": "modeling_jina_embeddings_v5.JinaEmbeddingsV5Model"}
ARCTIC_CODE = {"AutoModel": "modeling_hf_alibaba_nlp_gte.GteModel"}
NOMIC_CODE = {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"}
NOMIC_BERT = {
    "model_type": "nomic_bert", "architectures": ["NomicBertModel"], "n_embd": 64, "n_positions": 8192,
    "auto_map": NOMIC_CODE,
}  # fmt: skip
LAST, CLS, MEAN = Pooling.LAST, Pooling.CLS, Pooling.MEAN
V5_ADAPTERS = {
    f"adapters/{task}/{file}": "{}"
    for task in ("retrieval", "text-matching")
    for file in ("adapter_config.json", "adapter_model.safetensors")
}


def contract(
    family: str, architecture: str, max_tokens: int, pooling: Pooling, sizes: tuple[int, ...] = (64,),
    prompts: dict[str, str] | None = None, default: str | None = None, **more: Any,
) -> Contract:  # fmt: skip
    """A contract whose other values are its record's defaults."""
    return Contract(family, architecture, max_tokens, pooling, sizes, prompts=Prompts(prompts or {}, default), **more)


# Folder name, what lies in it, and the contract.
ROWS: list[tuple[str, list[Any], Contract]] = [
    (
        "nano",
        [
            config("jina_embeddings_v5", "JinaEmbeddingsV5Model", max_position_embeddings=8192, auto_map=V5_CODE,
                   task_names=["retrieval", "text-matching"]),
            {"modules.json": [transformer("custom_st.Transformer")]}, prompted("document", **JINA), V5_ADAPTERS,
        ],
        contract(family="jina-embeddings-v5", architecture="decoder", max_tokens=8192, pooling=LAST,
                 sizes=(64, 32), prompts=JINA, default="document", tasks=("retrieval", "text-matching"),
                 needs_task=True),
    ),
    (
        "merged",
        [config("eurobert", "EuroBertModel", max_position_embeddings=8192), pooled("lasttoken"),
         prompted("document", **JINA)],
        contract(family="jina-embeddings-v5-merged", architecture="decoder", max_tokens=8192, pooling=LAST,
                 sizes=(64, 32), prompts=JINA, default="document"),
    ),
    (
        "some-folder",
        [made.QWEN3, pooled("lasttoken"), prompted(query=f"Instruct: {SEARCH}\nQuery:", document=""),
         vocabulary("a", "b", "<|endoftext|>")],
        contract(family="qwen3-embedding", architecture="decoder", max_tokens=32768, pooling=LAST,
                 any_size_from=32, prompts={"query": f"Instruct: {SEARCH}\nQuery:", "document": ""},
                 template="Instruct: {instruction}\nQuery:", default_instruction=SEARCH, ending=2),
    ),
    (
        "zembed-1",
        [made.QWEN3, pooled("lasttoken", "modeling_zembed.ZembedTransformer"),
         {"projections.safetensors": made.weights(b=(8, 16), a=(64, 16))}],
        contract(family="zembed", architecture="decoder", max_tokens=32768, pooling=LAST, sizes=(64, 16, 8),
                 prompts={"query": "<|im_start|>system\nquery<|im_end|>\n<|im_start|>user\n",
                          "document": "<|im_start|>system\ndocument<|im_end|>\n<|im_start|>user\n"},
                 suffix="<|im_end|>\n", projections="projections.safetensors"),
    ),
    (
        "e5-mistral-7b-instruct",
        [config("mistral", "MistralModel", max_position_embeddings=32768), pooled("lasttoken"),
         unigram("<unk>", "<s>", "</s>")],
        contract(family="e5-mistral", architecture="decoder", max_tokens=4096, pooling=LAST,
                 prompts={"query": f"Instruct: {SEARCH}\nQuery: "}, template="Instruct: {instruction}\nQuery: ",
                 default_instruction=SEARCH, beginning=1, ending=2),
    ),
    (
        "bge-m3",
        [made.M3, limited(8192), pooled("cls_token"), unigram("<s>", "<pad>", "</s>", "<unk>"),
         {"sparse_linear.safetensors": made.weights(weight=(1, 64), bias=(1,)),
          "colbert_linear.safetensors": made.weights(weight=(48, 64), bias=(48,))}],
        contract(family="bge-m3", architecture="bert", max_tokens=8192, pooling=CLS,
                 outputs=(Output.DENSE, Output.SPARSE, Output.TOKENS), sparse_ignored=(0, 1, 2, 3),
                 late=LateContract(48, skips_first=True, is_mean=True)),
    ),
    (
        "bge-base-en-v1.5",
        [made.BERT, pooled("cls_token")],
        contract(family="bge", architecture="bert", max_tokens=512, pooling=CLS, prompts={"query": REPRESENT}),
    ),
    (
        "bge-large-zh",
        [made.BERT, pooled("cls_token")],
        contract(family="bge-zh", architecture="bert", max_tokens=512, pooling=CLS,
                 prompts={"query": "为这个句子生成表示以用于检索相关文章："}),
    ),
    (
        "multilingual-e5-large-instruct",
        [made.XLM_R, pooled("mean_tokens")],
        contract(family="multilingual-e5-instruct", architecture="bert", max_tokens=512, pooling=MEAN,
                 prompts={"query": f"Instruct: {SEARCH}\nQuery: "},
                 template="Instruct: {instruction}\nQuery: ", default_instruction=SEARCH),
    ),
    (
        "multilingual-e5-base",
        [made.XLM_R, pooled("mean_tokens")],
        contract(family="e5", architecture="bert", max_tokens=512, pooling=MEAN,
                 prompts={"query": "query: ", "passage": "passage: "}),
    ),
    (
        "gte-small",
        [made.BERT, pooled("mean_tokens")],
        contract(family="gte", architecture="bert", max_tokens=512, pooling=MEAN),
    ),
    (
        "gte-multilingual-base",
        [made.NEW, pooled("cls_token")],
        contract(family="gte-multilingual", architecture="gte", max_tokens=8192, pooling=CLS, any_size_from=128),
    ),
    (
        "gte-base-en-v1.5",
        [made.NEW],
        contract(family="gte-v1.5", architecture="gte", max_tokens=8192, pooling=CLS),
    ),
    (
        "gte-modernbert-base",
        [made.MODERNBERT, pooled("cls_token")],
        contract(family="gte-modernbert", architecture="modernbert", max_tokens=8192, pooling=CLS),
    ),
    (
        "granite-embedding-english-r2",
        [made.MODERNBERT, pooled("cls_token")],
        contract(family="granite-embedding-r2", architecture="modernbert", max_tokens=8192, pooling=CLS),
    ),
    (
        "granite-embedding-311m-multilingual-r2",
        [made.MODERNBERT | {"hidden_size": 768}, pooled("cls_token")],
        contract(family="granite-embedding-311m-r2", architecture="modernbert", max_tokens=8192, pooling=CLS,
                 sizes=(768, 512, 384, 256, 128)),
    ),
    (
        "snowflake-arctic-embed-m-v2.0",
        [config("gte", "GteModel", hidden_size=768, max_position_embeddings=8192, auto_map=ARCTIC_CODE),
         pooled("cls_token"), prompted(query="query: ")],
        contract(family="arctic-embed-v2", architecture="gte", max_tokens=8192, pooling=CLS, sizes=(768, 256),
         prompts={"query": "query: "}),
    ),
    (
        "snowflake-arctic-embed-m-v1.5",
        [made.BERT | {"hidden_size": 768}, pooled("cls_token"), prompted(query=REPRESENT)],
        contract(family="arctic-embed-m-v1.5", architecture="bert", max_tokens=512, pooling=CLS,
                 sizes=(768, 256), prompts={"query": REPRESENT}),
    ),
    (
        "snowflake-arctic-embed-m-long",
        [NOMIC_BERT, limited(2048), pooled("cls_token"), prompted(query=REPRESENT)],
        contract(family="arctic-embed", architecture="nomic_bert", max_tokens=2048, pooling=CLS,
                 prompts={"query": REPRESENT}),
    ),
    (
        "nomic-embed-text-v1.5",
        [NOMIC_BERT | {"n_embd": 768}, pooled("mean_tokens")],
        contract(family="nomic-embed-v1.5", architecture="nomic_bert", max_tokens=8192, pooling=MEAN,
                 sizes=(768, 512, 256, 128, 64), prompts=NOMIC, norms_before_cut=True),
    ),
    (
        "nomic-embed-text-v1",
        [NOMIC_BERT, pooled("mean_tokens")],
        contract(family="nomic-embed", architecture="nomic_bert", max_tokens=8192, pooling=MEAN, prompts=NOMIC),
    ),
    (
        "gemma",
        [
            config("gemma3_text", "Gemma3TextModel", hidden_size=256, max_position_embeddings=2048,
                   use_bidirectional_attention=True),
            pooled("mean_tokens"),
            {"modules.json": [transformer(), module(1, "Pooling"), module(2, "Dense"), module(3, "Dense"),
                              module(4, "Normalize")],
             "2_Dense/config.json": dense(256, 300), "2_Dense/model.safetensors": b"",
             "3_Dense/config.json": dense(300, 256), "3_Dense/model.safetensors": b""},
        ],
        contract(family="embeddinggemma", architecture="gemma", max_tokens=2048, pooling=MEAN, sizes=(256, 128),
         prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
         dense_modules=("2_Dense", "3_Dense")),
    ),
    (
        "minilm",
        [made.BERT, limited(256), pooled("mean_tokens")],
        contract(family="sentence-transformers", architecture="bert", max_tokens=256, pooling=MEAN),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "files", "wanted"), ROWS, ids=[wanted.family for _, _, wanted in ROWS])
def test_a_family_is_recognised_and_has_its_contract(
    tmp_path: Path, name: str, files: list[Any], wanted: Contract
) -> None:
    folder = write(tmp_path / name, *files)
    assert read_contract(folder) == replace(wanted, adapters=folder / "adapters" if wanted.tasks else None)


def test_every_family_of_embedders_has_a_row() -> None:
    served = {family.name for family in (*DECODERS, *ENCODERS, GENERIC) if family.refusal is None}
    assert served == {wanted.family for _, _, wanted in ROWS} | {"jina-embeddings-v3"}  # in test_tasks.py
