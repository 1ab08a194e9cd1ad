"""Known embedders on encoders. Those of one model type look alike, so most are recognised by what they are called."""

from __future__ import annotations

from dataclasses import replace

from embedmux.server.checkpoint.decoders import JINA_SIZES, SEARCH
from embedmux.server.checkpoint.evidence import Evidence
from embedmux.server.checkpoint.family import Family
from embedmux.server.checkpoint.headers import file_shapes, model_shape
from embedmux.server.contract import Contract, LateContract, Prompts
from embedmux.server.records import Output, Pooling

SPARSE, COLBERT = "sparse_linear", "colbert_linear"  # .pt as published, .safetensors once converted
STACKED = "roberta.embeddings.token_type_embeddings.parametrizations.weight.0.lora_A"  # Jina v3's original layout
REPRESENT = "Represent this sentence for searching relevant passages: "


def _is_m3(evidence: Evidence) -> bool:
    return any(evidence.folder.has(f"{name}.{kind}") for name in (SPARSE, COLBERT) for kind in ("pt", "safetensors"))


def _m3(evidence: Evidence, contract: Contract) -> Contract:
    """Sparse weights and token vectors, as far as their heads have been converted."""
    folder, tokens = evidence.folder, evidence.tokens
    outputs = [Output.DENSE]
    if folder.has(f"{SPARSE}.safetensors"):
        outputs.append(Output.SPARSE)
        special = tuple(tokens.require(token) for token in ("<s>", "<pad>", "</s>", "<unk>"))
        contract = replace(contract, sparse_ignored=special)
    if folder.has(f"{COLBERT}.safetensors"):
        outputs.append(Output.TOKENS)
        shape = file_shapes(folder, f"{COLBERT}.safetensors").get("weight", ())
        if len(shape) != 2:
            folder.reject(f"{COLBERT}.safetensors: tensor 'weight' is missing; make it again: embedmux convert DIR")
        contract = replace(contract, late=LateContract(dimensions=shape[0], skips_first=True, is_mean=True))
    return replace(contract, outputs=tuple(outputs))


def task_folder(task: str) -> str:
    """The folder of one of Jina v3's tasks, such as ``retrieval_query`` for retrieval.query."""
    return task.replace(".", "_").replace("-", "_")


def _jina_v3(evidence: Evidence, contract: Contract) -> Contract:
    """Tasks and their prompts stand in config.json; the updates in the model's own file or in a folder each."""
    folder, config = evidence.folder, evidence.config
    tasks = config.strings("lora_adaptations", ())
    known = config.section("task_instructions").values
    if not all(isinstance(text, str) for text in known.values()):
        config.reject("task_instructions", "names to texts")
    is_stacked = bool(tasks) and model_shape(folder, STACKED) is not None
    for task in tasks:
        path = task_folder(task)
        if not is_stacked and not folder.has(f"{path}/adapter_model.safetensors"):
            folder.reject(
                f"{path}/adapter_model.safetensors is missing, and config.json lists {task!r} in lora_adaptations; "
                "fetch the whole repository"
            )
    prompts = replace(contract.prompts, by_name={**known, **contract.prompts.by_name})
    return replace(contract, tasks=tasks, prompts=prompts)


def _is_mixture(evidence: Evidence) -> bool:
    return bool(evidence.config.get("num_experts")) or bool(evidence.config.get("moe_every_n_layers"))


NOMIC_PROMPTS = Prompts(
    {
        "query": "search_query: ",
        "document": "search_document: ",
        "classification": "classification: ",
        "clustering": "clustering: ",
    }
)
GEMMA_PROMPTS = Prompts({"query": "task: search result | query: ", "document": "title: none | text: "})
ENCODERS = (
    Family(
        "bge-m3",
        models="BAAI/bge-m3, with sparse weights and token vectors once `embedmux convert` has made their heads",
        types=("xlm-roberta",),
        named=r"bge-m3(-unsupervised|-retromae)?",
        marks=_is_m3,
        pooling=Pooling.CLS,
        complete=_m3,
    ),
    Family(
        "bge",
        models="BAAI/bge-{small,base,large}-en, also -v1.5",
        types=("bert",),
        named=r"bge-(small|base|large)-en(-v1\.5)?",
        prompts=Prompts({"query": REPRESENT}),
        pooling=Pooling.CLS,
    ),
    Family(
        "bge-zh",
        models="BAAI/bge-{small,base,large}-zh, also -v1.5",
        types=("bert",),
        named=r"bge-(small|base|large)-zh(-v1\.5)?",
        prompts=Prompts({"query": "为这个句子生成表示以用于检索相关文章："}),
        pooling=Pooling.CLS,
    ),
    Family(
        "multilingual-e5-instruct",
        models="intfloat/multilingual-e5-large-instruct",
        types=("xlm-roberta",),
        named="multilingual-e5-large-instruct",
        prompts=Prompts({"query": f"Instruct: {SEARCH}\nQuery: "}),
        template="Instruct: {instruction}\nQuery: ",
        instruction=SEARCH,
        pooling=Pooling.MEAN,
    ),
    Family(
        "e5",
        models="intfloat/e5-{small,base,large}, also -v2; intfloat/multilingual-e5-{small,base,large}",
        types=("bert", "xlm-roberta"),
        named=r"(multilingual-)?e5-(small|base|large)(-v2|-unsupervised)?",
        prompts=Prompts({"query": "query: ", "passage": "passage: "}),
        pooling=Pooling.MEAN,
    ),
    Family(
        "gte",
        models="thenlper/gte-{small,base,large}",
        types=("bert",),
        named="gte-(small|base|large)",
        pooling=Pooling.MEAN,
    ),
    Family(
        "gte-multilingual",
        models="Alibaba-NLP/gte-multilingual-base",
        types=("new", "gte"),
        named="gte-multilingual-base",
        pooling=Pooling.CLS,
        any_size_from=128,
    ),
    Family(
        "gte-v1.5",
        models="Alibaba-NLP/gte-{base,large}-en-v1.5",
        types=("new", "gte"),
        named=r"gte-(base|large)-en-v1\.5",
        pooling=Pooling.CLS,
    ),
    Family(
        "gte-modernbert",
        models="Alibaba-NLP/gte-modernbert-base",
        types=("modernbert",),
        named="gte-modernbert-base",
        pooling=Pooling.CLS,
    ),
    Family(
        "granite-embedding-311m-r2",
        models="ibm-granite/granite-embedding-311m-multilingual-r2",
        types=("modernbert",),
        named="granite-embedding-311m-multilingual-r2",
        pooling=Pooling.CLS,
        sizes=(512, 384, 256, 128),
    ),
    Family(
        "granite-embedding-r2",
        models="ibm-granite/granite-embedding-{english,small-english,97m-multilingual}-r2",
        types=("modernbert",),
        named=r"granite-embedding-(english|small-english|97m-multilingual)-r2",
        pooling=Pooling.CLS,
    ),
    Family(
        "arctic-embed-v2",
        models="Snowflake/snowflake-arctic-embed-{m,l}-v2.0",
        types=("gte", "xlm-roberta"),
        named=r"arctic-embed-[ml]-v2\.0",
        prompts=Prompts({"query": "query: "}),
        pooling=Pooling.CLS,
        sizes=(256,),
    ),
    Family(
        "arctic-embed-m-v1.5",
        models="Snowflake/snowflake-arctic-embed-m-v1.5",
        types=("bert",),
        named=r"arctic-embed-m-v1\.5",
        prompts=Prompts({"query": REPRESENT}),
        pooling=Pooling.CLS,
        sizes=(256,),
    ),
    Family(
        "arctic-embed",
        models="Snowflake/snowflake-arctic-embed-{xs,s,m,m-long,l}",
        types=("bert", "nomic_bert"),
        named="arctic-embed-(xs|s|m|m-long|l)",
        prompts=Prompts({"query": REPRESENT}),
        pooling=Pooling.CLS,
    ),
    Family(
        "nomic-embed-moe",
        models="nomic-ai/nomic-embed-text-v2-moe",
        types=("nomic_bert",),
        named="nomic-embed-text-v2-moe",
        marks=_is_mixture,
        refusal="its layers are mixtures of experts, which no backbone here computes; nomic-embed-text-v1.5 is served",
    ),
    Family(
        "nomic-embed-v1.5",
        models="nomic-ai/nomic-embed-text-v1.5",
        types=("nomic_bert",),
        named=r"nomic-embed-text-v1\.5",
        prompts=NOMIC_PROMPTS,
        pooling=Pooling.MEAN,
        sizes=(512, 256, 128, 64),
        complete=lambda evidence, contract: replace(contract, norms_before_cut=True),
    ),
    Family(
        "nomic-embed",
        models="nomic-ai/nomic-embed-text-v1, nomic-ai/modernbert-embed-base",
        types=("nomic_bert", "modernbert"),
        named="(nomic-embed-text-v1(-ablated|-unsupervised)?|modernbert-embed-base)",
        prompts=NOMIC_PROMPTS,
        pooling=Pooling.MEAN,
    ),
    Family(
        "embeddinggemma",
        models="google/embeddinggemma-300m",
        types=("gemma3_text",),
        named="embeddinggemma-300m",
        marks=lambda evidence: evidence.config.get("use_bidirectional_attention") is True,
        prompts=GEMMA_PROMPTS,
        pooling=Pooling.MEAN,
        sizes=(512, 256, 128),
        max_tokens=2048,
    ),
    Family(
        "jina-embeddings-v3",
        models="jinaai/jina-embeddings-v3, also -hf",
        types=("jina_embeddings_v3", "xlm-roberta-flash"),
        marks=lambda evidence: True,
        pooling=Pooling.MEAN,
        sizes=JINA_SIZES,
        custom=("custom_st.Transformer",),
        complete=_jina_v3,
    ),
)
