"""Checkpoints that bring adapters of their own: both layouts of Jina v3, and what is missing of them."""

from pathlib import Path
from typing import Any

import checkpoint_folders as made
import pytest
from checkpoint_folders import pooled, prompted, write

from embedmux.server.checkpoint.read import read_contract
from embedmux.server.errors import ModelRejected

TASKS = ["retrieval.query", "retrieval.passage", "text-matching"]
PROMPTS = {"retrieval.query": "Represent the query: ", "retrieval.passage": "Represent the document: "}
V3 = {"lora_adaptations": TASKS, "task_instructions": PROMPTS, "matryoshka_dimensions": [32, 64]}
NATIVE = made.config("jina_embeddings_v3", "JinaEmbeddingsV3Model", max_position_embeddings=8194) | V3
FOLDERS = {
    f"{name}/adapter_model.safetensors": b"" for name in ("retrieval_query", "retrieval_passage", "text_matching")
}
PLAIN = {"model.safetensors": made.weights(roberta__emb_ln__weight=(64,))}


def test_updates_stacked_in_the_models_own_file(tmp_path: Path) -> None:
    stacked = {"model.safetensors": made.weights(**{made.STACKED: (3, 1, 4)})}
    folder = write(tmp_path, made.FLASH | V3, pooled("mean_tokens", "custom_st.Transformer"), stacked)
    contract = read_contract(folder)
    assert (contract.family, contract.architecture) == ("jina-embeddings-v3", "jina_v3")
    assert contract.tasks == tuple(TASKS)
    assert contract.prompts.by_name == PROMPTS
    assert (contract.sizes, contract.max_tokens, contract.needs_task) == ((64, 32), 8194, False)


def test_updates_in_a_folder_for_each_task(tmp_path: Path) -> None:
    contract = read_contract(write(tmp_path, NATIVE, pooled("mean_tokens"), PLAIN, FOLDERS))
    assert (contract.family, contract.tasks, contract.adapters) == ("jina-embeddings-v3", tuple(TASKS), None)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    files: dict[str, Any] = FOLDERS | {"text_matching/adapter_model.safetensors": None}
    with pytest.raises(
        ModelRejected, match=r"text_matching/adapter_model\.safetensors is missing, and config\.json lists"
    ):
        read_contract(write(tmp_path, NATIVE, PLAIN, files))


def test_the_model_without_tasks_is_the_bare_one(tmp_path: Path) -> None:
    contract = read_contract(write(tmp_path, made.FLASH, pooled("mean_tokens")))
    assert (contract.family, contract.tasks, contract.prompts.by_name) == ("jina-embeddings-v3", (), {})


def test_the_checkpoints_prompts_come_before_those_of_its_config(tmp_path: Path) -> None:
    own = prompted(**{"retrieval.query": "ask: "})
    prompts = read_contract(write(tmp_path, NATIVE, PLAIN, FOLDERS, own)).prompts.by_name
    assert prompts == PROMPTS | {"retrieval.query": "ask: "}


def test_prompts_of_another_kind_are_refused(tmp_path: Path) -> None:
    values = NATIVE | {"task_instructions": {"retrieval.query": 1}}
    with pytest.raises(ModelRejected, match=r"task_instructions is .* it must be names to texts"):
        read_contract(write(tmp_path, values, PLAIN, FOLDERS))


def test_positions_that_depend_on_a_batch_are_not_read(tmp_path: Path) -> None:
    scaled = {"rotary_scaling_factor": 2.0, "max_trained_positions": 2048, "n_positions": 8192, "n_embd": 64}
    folder = write(tmp_path, made.config("nomic_bert", "NomicBertModel") | scaled, pooled("mean_tokens"))
    assert read_contract(folder).max_tokens == 2048
