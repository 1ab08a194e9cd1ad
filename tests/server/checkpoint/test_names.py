"""Names of models as hints: where they are looked for, and what counts as one."""

from pathlib import Path
from typing import Any

import checkpoint_folders as made
import pytest
from checkpoint_folders import pooled, prompted, write

from embedmux.server.checkpoint.read import read

CARD = "---\ntags:\n- mteb\nmodel-index:\n- name: e5-base-v2\n  results: []\n---\n\n# Text embeddings\n"
NAMED: dict[str, tuple[str, dict[str, Any], str]] = {
    "directory": ("e5-base-v2", {}, "the directory's name: e5-base-v2"),
    "directory with the owner": ("intfloat_e5-base-v2", {}, "the directory's name: intfloat_e5-base-v2"),
    "hub": ("models--intfloat--e5-base-v2/snapshots/0123abc", {}, "the hub's name: e5-base-v2"),
    "card": ("x", {"README.md": CARD}, "the model card: e5-base-v2"),
    "title": ("x", {"README.md": "## Multilingual-E5-base\n"}, "the model card's title: Multilingual-E5-base"),
    "config": ("x", {"config.json": made.BERT | {"_name_or_path": "/cache/intfloat_e5-small/"}},
               "config.json: _name_or_path: /cache/intfloat_e5-small/"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "files", "recognised"), NAMED.values(), ids=NAMED)
def test_a_model_is_recognised_by_what_it_is_called(
    tmp_path: Path, name: str, files: dict[str, Any], recognised: str
) -> None:
    reading = read(write(tmp_path / name, made.BERT, pooled("mean_tokens"), files))
    assert reading.contract.prompts.by_name == {"query": "query: ", "passage": "passage: "}
    assert reading.recognised == recognised


@pytest.mark.parametrize("name", ["e5-base-v2-finetuned", "me5-base", "e5-base-v3", "my-model"])
def test_other_names_say_nothing(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path / name, made.BERT, pooled("mean_tokens"))).contract.prompts.by_name == {}


def test_what_a_model_was_made_of_gives_it_no_prompts(tmp_path: Path) -> None:
    card = {"README.md": "---\nbase_model:\n- intfloat/e5-base-v2\n---\n"}
    assert read(write(tmp_path / "mine", made.BERT, pooled("mean_tokens"), card)).contract.prompts.by_name == {}


def test_the_checkpoints_own_prompts_come_before_those_that_are_known(tmp_path: Path) -> None:
    own = prompted("query", query="ask: ")
    prompts = read(write(tmp_path / "e5-base-v2", made.BERT, pooled("mean_tokens"), own)).contract.prompts
    assert prompts.pair == ("ask: ", "passage: ")
    assert prompts.default_name == "query"


def test_messages_call_a_model_of_the_hub_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "models--owner--some-model" / "snapshots" / "0123abc"
    with pytest.raises(Exception, match="model 'some-model': "):
        read(write(folder, made.BERT | {"model_type": "t5"}))
