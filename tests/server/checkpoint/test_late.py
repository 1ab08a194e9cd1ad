"""Late interaction: markers, masks, skipped tokens and sizes, from the three layouts that are in use."""

import string
from pathlib import Path
from typing import Any

import checkpoint_folders as made
import pytest
from checkpoint_folders import config, dense, limited, module, transformer, vocabulary, write

from embedmux.server.checkpoint.read import read_contract
from embedmux.server.contract import LateContract
from embedmux.server.errors import ModelRejected
from embedmux.server.records import Output

WORDS = vocabulary("[MASK]", "[unused0]", "[unused1]", "!", ".", "[Q] ", "[D] ", "word")
MASK = {"tokenizer_config.json": {"mask_token": "[MASK]", "model_max_length": 512}}
STANFORD = config("bert", "HF_ColBERT")
PROJECTED = {"model.safetensors": made.weights(linear__weight=(16, 64), bert__pooler=(1,))}
PYLATE = {
    "modules.json": [transformer(), {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"}],
    "1_Dense/config.json": dense(64, 16),
    "1_Dense/model.safetensors": b"",
}


def settings(**values: Any) -> dict[str, Any]:
    """config_sentence_transformers.json."""
    return {"config_sentence_transformers.json": values}


def test_the_layout_of_stanfords_colbert(tmp_path: Path) -> None:
    metadata = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_maxlen": 24, "doc_maxlen": 300,
                "dim": 16, "similarity": "cosine", "mask_punctuation": True, "attend_to_mask_tokens": True}  # fmt: skip
    contract = read_contract(write(tmp_path, STANFORD, WORDS, MASK, PROJECTED, {"artifact.metadata": metadata}))
    assert contract.late == LateContract(
        16, query_marker=1, document_marker=2, query_tokens=24, mask_token=0, attends_to_expansion=True, skipped=(3, 4)
    )
    assert (contract.outputs, contract.sizes, contract.max_tokens) == ((Output.TOKENS,), (16,), 300)


def test_what_stanfords_metadata_leaves_unsaid(tmp_path: Path) -> None:
    late = read_contract(write(tmp_path, STANFORD, WORDS, MASK, PROJECTED)).late
    assert late == LateContract(
        16, query_marker=1, document_marker=2, query_tokens=32, mask_token=0, attends_to_expansion=False, skipped=(3, 4)
    )


def test_the_layout_of_pylate(tmp_path: Path) -> None:
    said = settings(
        query_prefix="[Q] ", document_prefix="[D] ", query_length=48, document_length=300,
        attend_to_expansion_tokens=False, skiplist_words=["!", "nowhere"], prompts={},
    )  # fmt: skip
    contract = read_contract(write(tmp_path, made.MODERNBERT, WORDS, MASK, PYLATE, said, limited(299)))
    assert contract.late == LateContract(
        16, query_marker=5, document_marker=6, query_tokens=48, mask_token=0, attends_to_expansion=False, skipped=(3,)
    )
    assert (contract.family, contract.dense_modules, contract.max_tokens) == ("pylate", (), 300)


def test_pylate_skips_punctuation_unless_told_otherwise(tmp_path: Path) -> None:
    folder = write(
        tmp_path, made.BERT, vocabulary("[MASK]", *string.punctuation), MASK, PYLATE, settings(query_length=32)
    )
    late = read_contract(folder).late
    assert late is not None
    assert late.skipped == tuple(range(1, 33))


def test_pylate_without_expansion_needs_no_mask_token(tmp_path: Path) -> None:
    said = settings(do_query_expansion=False, query_length=32, document_length=128)
    late = read_contract(write(tmp_path, made.BERT, WORDS, PYLATE, said)).late
    assert late is not None
    assert (late.query_tokens, late.mask_token) == (None, None)


def test_a_prefix_that_is_no_token_is_text(tmp_path: Path) -> None:
    said = settings(query_prefix="query: ", document_prefix="", query_length=32)
    late = read_contract(write(tmp_path, made.BERT, WORDS, MASK, PYLATE, said)).late
    assert late is not None
    assert (late.query_prefix, late.document_prefix) == ("query: ", "")
    assert (late.query_marker, late.document_marker) == (None, None)


def test_a_prefix_that_is_listed_among_the_prompts_stands_once(tmp_path: Path) -> None:
    said = settings(query_prefix="[Q] ", document_prefix="[D] ", prompts={"query": "[Q] ask ", "document": "[D] "})
    contract = read_contract(write(tmp_path, made.BERT, WORDS, MASK, PYLATE, said))
    assert contract.prompts.by_name == {"query": "ask ", "document": ""}


def test_the_layout_of_a_multi_vector_encoder(tmp_path: Path) -> None:
    room = "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask"
    files = {
        "modules.json": [
            transformer(), module(1, "Dense"), module(2, "MultiVectorMask", room), module(3, "Normalize"),
        ],
        "1_Dense/config.json": dense(64, 16, module_input_name="token_embeddings"),
        "1_Dense/model.safetensors": b"",
        "2_MultiVectorMask/config.json": {"skiplist_words": ["."], "skiplist_tasks": ["document"]},
        "sentence_bert_config.json": {
            "document_length": 200, "query_expansion": {"strategy": "fixed", "attend": True, "length": 40},
        },
    }  # fmt: skip
    said = settings(model_type="MultiVectorEncoder", prompts={"query": "[Q] ", "document": "[D] "})
    contract = read_contract(write(tmp_path, made.BERT, WORDS, MASK, files, said))
    assert contract.late == LateContract(16, query_tokens=40, mask_token=0, attends_to_expansion=True, skipped=(4,))
    assert contract.prompts.by_name == {"query": "[Q] ", "document": "[D] "}
    assert contract.max_tokens == 200


@pytest.mark.parametrize("kind", ["ColBERT", "MultiVectorEncoder"])
def test_vectors_without_a_module_that_normalises_keep_their_length_where_nothing_else_does(
    tmp_path: Path, kind: str
) -> None:
    late = read_contract(write(tmp_path, made.BERT, WORDS, MASK, PYLATE, settings(model_type=kind))).late
    assert late is not None
    assert late.is_normalized == (kind == "ColBERT")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"artifact.metadata": {"similarity": "l2"}}, r"artifact\.metadata: similarity is 'l2'"),
        ({"model.safetensors": made.weights(bert__x=(1,))}, "tensor 'linear.weight' is missing"),
        ({"tokenizer_config.json": {}}, "mask_token is None; it must be a token"),
        ({"model.safetensors": made.weights(linear__weight=(16, 64))[:50]}, r"model\.safetensors is cut off"),
        (
            {"model.safetensors": made.weights(linear__weight=(16, 64))[:100]},
            r"model\.safetensors has 100 bytes, its header speaks of 4185; copy it again",
        ),
    ],
    ids=["similarity", "projection", "mask", "half a header", "cut off"],
)
def test_a_colbert_that_would_be_computed_wrongly_is_refused(
    tmp_path: Path, files: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelRejected, match=message):
        read_contract(write(tmp_path, STANFORD, WORDS, MASK, PROJECTED, files))


def test_token_vectors_behind_two_linears_are_refused(tmp_path: Path) -> None:
    more = {"modules.json": [*PYLATE["modules.json"], module(2, "Dense")], "2_Dense/config.json": dense(16, 8),
            "2_Dense/model.safetensors": b""}  # fmt: skip
    with pytest.raises(ModelRejected, match="2 Dense modules; token vectors have one projection"):
        read_contract(write(tmp_path, made.BERT, WORDS, MASK, PYLATE, more, settings(query_length=32)))
