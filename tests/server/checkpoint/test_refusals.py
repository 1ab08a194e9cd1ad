"""What a folder is refused for, file and cause named; and what is said of one that is served."""

from pathlib import Path
from typing import Any

import checkpoint_folders as made
import pytest
from checkpoint_folders import config, dense, limited, module, pooled, prompted, transformer, unigram, vocabulary, write

from embedmux.server.checkpoint.read import read, read_contract
from embedmux.server.errors import ModelRejected
from embedmux.server.records import Output, Pooling

V5 = config("jina_embeddings_v5", "JinaEmbeddingsV5Model", task_names=["retrieval"])
POOLED = pooled("mean_tokens")


def pooling(**values: Any) -> dict[str, Any]:
    """1_Pooling/config.json in place of the usual one."""
    return POOLED | {"1_Pooling/config.json": {"word_embedding_dimension": 64} | values}


REFUSED: dict[str, tuple[list[Any], str]] = {
    "no config": ([made.BERT, {"config.json": None}], r"config\.json is missing"),
    "broken config": ([made.BERT, {"config.json": "{"}], r"cannot read config\.json"),
    "config of another kind": ([made.BERT, {"config.json": []}], r"config\.json holds list, not an object"),
    "large config": ([made.BERT, {"config.json": " " * (1 << 24)}], r"config\.json has 16777216 bytes, the limit"),
    "no tokenizer": ([made.BERT, {"tokenizer.json": None}], r"tokenizer\.json is missing; save its fast tokenizer"),
    "no model_type": ([{"hidden_size": 64}], r"config\.json has no model_type"),
    "unknown model_type": ([config("mpnet", "MPNetModel")], r"model_type is 'mpnet'; it must be one of bert, "),
    "our own model_type": ([config("xlm-roberta-flash", "X")], "model_type is 'xlm-roberta-flash'"),
    "no positions": ([made.BERT | {"max_position_embeddings": None}], "has no max_position_embeddings"),
    "foreign code": (
        [made.BERT | {"auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"}}],
        r"auto_map names code of its own \(JinaBertModel\), which is never run and may compute something other",
    ),
    "foreign code of a decoder": (
        [made.QWEN3 | {"model_type": "qwen2", "auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}}],
        r"auto_map names code of its own \(Qwen2Model\)",
    ),
    "learned positions in Jina's code": (
        [made.FLASH | {"position_embedding_type": "absolute"}],
        "position_embedding_type is 'absolute'",
    ),
    "code in modules.json": (
        [made.BERT, {"modules.json": [transformer("custom_st.Transformer")]}],
        r"modules\.json: custom_st\.Transformer is code of the checkpoint's own",
    ),
    "unknown module": (
        [made.BERT, {"modules.json": [transformer(), module(1, "WordWeights")]}],
        r"modules\.json: module sentence_transformers\.models\.WordWeights is not computed",
    ),
    "a module outside the folder": (
        [made.BERT, {"modules.json": [transformer() | {"path": "../other"}]}],
        r"modules\.json: path '../other' leads out of the folder",
    ),
    "a module without type": ([made.BERT, {"modules.json": [{"path": ""}]}], "must be an object with type and path"),
    "max pooling": (
        [made.BERT, pooling(pooling_mode_max_tokens=True)],
        r"1_Pooling/config\.json: pooling \['max_tokens'\] must be one of",
    ),
    "two poolings": ([made.BERT, pooling(pooling_mode=["cls", "mean"])], r"pooling \['cls', 'mean'\] must be one of"),
    "prompts left out": (
        [made.BERT, pooling(pooling_mode="mean", include_prompt=False), prompted(query="ask: ")],
        "include_prompt is false and the model has prompts",
    ),
    "no pooling of a decoder": ([made.QWEN3], r"modules\.json names no pooling"),
    "activation of a linear": (
        [
            made.BERT,
            POOLED | {"modules.json": [*POOLED["modules.json"], module(3, "Dense")]},
            {"3_Dense/config.json": dense(64, 32, activation_function="torch.nn.modules.activation.Tanh")},
        ],
        r"3_Dense/config\.json: activation_function is 'torch\.nn\.modules\.activation\.Tanh'",
    ),
    "pickled linear": (
        [
            made.BERT,
            POOLED | {"modules.json": [*POOLED["modules.json"], module(3, "Dense")]},
            {"3_Dense/config.json": dense(64, 32), "3_Dense/pytorch_model.bin": b""},
        ],
        r"3_Dense/model\.safetensors is missing",
    ),
    "prompts of another kind": (
        [made.BERT, {"config_sentence_transformers.json": {"prompts": {"query": 1}}}],
        "prompts is {'query': 1}; it must be names to texts",
    ),
    "unknown default prompt": ([made.BERT, prompted("query", document="d: ")], "default_prompt_name is 'query'"),
    "sizes of another kind": ([made.BERT | {"matryoshka_dimensions": 64}], "matryoshka_dimensions is 64"),
    "lower case": (
        [made.BERT, {"sentence_bert_config.json": {"do_lower_case": True}}],
        r"sentence_bert_config\.json: do_lower_case is True",
    ),
    "missing adapter": (
        [V5, {"adapters/retrieval/adapter_config.json": "{}"}],
        r"adapters/retrieval/adapter_model\.safetensors is missing, and config\.json lists 'retrieval' in task_names",
    ),
    "missing ending": (
        [made.QWEN3, pooled("lasttoken"), prompted(query="Instruct: x\nQuery:")],
        r"tokenizer\.json has no token '<\|endoftext\|>'",
    ),
    "mixture of experts": (
        [config("nomic_bert", "NomicBertModel", num_experts=8)],
        r"nomic-embed-moe \(what its files say\) is not served: its layers are mixtures of experts",
    ),
    "gemma that generates": ([config("gemma3_text", "Gemma3ForCausalLM")], "no known family of it looks like"),
}


@pytest.mark.parametrize(("files", "message"), REFUSED.values(), ids=REFUSED)
def test_a_folder_is_refused_by_file_and_cause(tmp_path: Path, files: list[Any], message: str) -> None:
    with pytest.raises(ModelRejected, match=f"^model 'broken': .*{message}"):
        read_contract(write(tmp_path / "broken", *files))


@pytest.mark.parametrize(
    "files",
    [
        {"README.md": "---\nbase_model: Alibaba-NLP/gte-Qwen2-1.5B-instruct\n---\n# Mine\n"},
        {"README.md": "# gte-Qwen2-7B-instruct\n"},
    ],
    ids=["fine-tuned", "itself"],
)
def test_gte_qwen2_and_what_was_made_of_it_are_refused_with_the_reason(tmp_path: Path, files: dict[str, Any]) -> None:
    folder = write(tmp_path, config("qwen2", "Qwen2ForCausalLM"), pooled("lasttoken"), files)
    with pytest.raises(
        ModelRejected, match=r"gte-qwen2 \(the model card's .*\) is not served: its own code attends in both"
    ):
        read_contract(folder)


def test_matrices_that_form_no_chain_are_refused(tmp_path: Path) -> None:
    broken = {"projections.safetensors": made.weights(a=(64, 32), b=(16, 8))}
    with pytest.raises(ModelRejected, match=r"projections\.safetensors: 0 matrices lead on from size 32"):
        read_contract(write(tmp_path, made.QWEN3, pooled("lasttoken"), broken))


@pytest.mark.parametrize("normalizer", [{"type": "BertNormalizer", "lowercase": True}, {"type": "Lowercase"}])
def test_lower_case_is_served_where_the_tokenizer_does_it(tmp_path: Path, normalizer: dict[str, Any]) -> None:
    tokenizer = {"tokenizer.json": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, normalizer]}}}
    lower = {"sentence_bert_config.json": {"do_lower_case": True}}
    assert read_contract(write(tmp_path, made.BERT, POOLED, tokenizer, lower)).pooling is Pooling.MEAN


def test_prompts_left_out_of_the_pooling_are_no_matter_where_there_are_none(tmp_path: Path) -> None:
    empty = pooling(pooling_mode="cls", include_prompt=False) | prompted(query="", document="")
    contract = read_contract(write(tmp_path / "cls", made.MODERNBERT, empty))
    assert not contract.takes_prompts
    last = pooling(pooling_mode="lasttoken", include_prompt=False) | prompted(query="ask: ")
    assert read_contract(write(tmp_path / "last", made.QWEN3, last)).takes_prompts


def test_notes_say_what_serving_would_not_show(tmp_path: Path) -> None:
    bare = read(write(tmp_path / "bare", made.BERT))
    assert [note.split(";")[0] for note in bare.notes[:1]] == ["nothing names a pooling"]
    assert "no prompts are known" in bare.notes[1]
    plain = POOLED | {"modules.json": POOLED["modules.json"][:2]}
    assert "has no Normalize" in read(write(tmp_path / "plain", made.BERT, plain)).notes[0]


def test_pickled_heads_are_not_served_and_the_command_that_converts_them_is_named(tmp_path: Path) -> None:
    heads = {"colbert_linear.pt": b"", "sparse_linear.pt": b""}
    reading = read(write(tmp_path, made.M3, pooled("cls_token"), limited(8192), unigram(), heads))
    assert reading.contract.family == "bge-m3"
    assert reading.contract.outputs == (Output.DENSE,)
    assert ["embedmux convert" in note for note in reading.notes[:2]] == [True, True]


def test_what_tells_a_folder_is_said(tmp_path: Path) -> None:
    named = read(write(tmp_path / "bge-small-en-v1.5", made.BERT, pooled("cls_token")))
    assert named.recognised == "the directory's name: bge-small-en-v1.5"
    assert named.prompts_from == "the table of known families (bge)"
    own = read(write(tmp_path / "mine", made.BERT, POOLED, prompted(query="ask: "), vocabulary()))
    assert own.prompts_from == "config_sentence_transformers.json"
