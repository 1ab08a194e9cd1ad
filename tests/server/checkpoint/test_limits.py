"""The most tokens a model reads, and the sizes it declares."""

from pathlib import Path
from typing import Any

import checkpoint_folders as made
import pytest
from checkpoint_folders import limited, pooled, write

from embedmux.server.checkpoint.read import read_contract

LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "positions": (made.BERT, {}, 512),
    "positions behind the padding": (made.XLM_R, {}, 512),
    "padding elsewhere": (made.XLM_R | {"pad_token_id": 0}, {}, 513),
    "sentence-transformers": (made.M3, limited(1000), 1000),
    "sentence-transformers above the positions": (made.BERT, limited(8192), 512),
    "tokenizer": (made.M3, {"tokenizer_config.json": {"model_max_length": 4096}}, 4096),
    "sentence-transformers before the tokenizer": (
        made.M3,
        limited(8192) | {"tokenizer_config.json": {"model_max_length": 512}},
        8192,
    ),
    "tokenizer without a limit": (made.M3, {"tokenizer_config.json": {"model_max_length": 10**30}}, 8192),
}


@pytest.mark.parametrize(("values", "files", "wanted"), LIMITS.values(), ids=LIMITS)
def test_the_least_of_the_limits_holds(
    tmp_path: Path, values: dict[str, Any], files: dict[str, Any], wanted: int
) -> None:
    assert read_contract(write(tmp_path, values, pooled("mean_tokens"), files)).max_tokens == wanted


@pytest.mark.parametrize("key", ["matryoshka_dimensions", "matryoshka_dims"])
def test_the_config_declares_sizes(tmp_path: Path, key: str) -> None:
    assert read_contract(write(tmp_path, made.BERT | {key: [32, 64, 16]}, pooled("mean_tokens"))).sizes == (64, 32, 16)


def test_the_last_linear_gives_the_full_size(tmp_path: Path) -> None:
    files = pooled("mean_tokens")
    files["modules.json"].append({"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    files |= {"2_Dense/config.json": made.dense(64, 24), "2_Dense/model.safetensors": b""}
    contract = read_contract(write(tmp_path, made.BERT, files))
    assert (contract.sizes, contract.dense_modules) == ((24,), ("2_Dense",))


def test_any_size_from_the_least_one_up_is_declared(tmp_path: Path) -> None:
    contract = read_contract(write(tmp_path / "gte-multilingual-base", made.NEW | {"hidden_size": 768}))
    assert [contract.declares(size) for size in (127, 128, 500, 768, 769)] == [False, True, True, True, False]
