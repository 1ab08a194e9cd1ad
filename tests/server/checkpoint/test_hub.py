"""What is fetched from the hub: all that serving needs, and neither pickles nor code."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from embedmux.server.models import HUB_IGNORED, HUB_PATTERNS, find_model

WANTED = [
    "config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "config_sentence_transformers.json",
    "sentence_bert_config.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
    "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "projections.safetensors",
    "adapters/retrieval/adapter_config.json", "adapters/retrieval/adapter_model.safetensors",
    "retrieval_query/adapter_model.safetensors", "1_LogitScore/config.json", "artifact.metadata", "README.md",
]  # fmt: skip
UNWANTED = [
    "pytorch_model.bin", "2_Dense/pytorch_model.bin", "colbert_linear.pt", "sparse_linear.pt", "tf_model.h5",
    "modeling_jina_embeddings_v5.py", "custom_st.py", "onnx/config.json", "onnx/model.onnx", "openvino/x.json",
    "model.gguf", "sentencepiece.bpe.model", "training_args.bin", "optimizer.pkl",
]  # fmt: skip


def test_the_patterns_bring_what_is_needed_and_nothing_that_would_be_run() -> None:
    kept = filter_repo_objects([*WANTED, *UNWANTED], allow_patterns=HUB_PATTERNS, ignore_patterns=HUB_IGNORED)
    assert list(kept) == WANTED


def test_a_hub_id_is_fetched_with_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert find_model("owner/name") == tmp_path
    assert asked == [("owner/name", {"allow_patterns": HUB_PATTERNS, "ignore_patterns": HUB_IGNORED})]
