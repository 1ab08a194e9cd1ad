"""The frozen backbone of a training run, and the `embed` function that evaluation and calibration call."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from embedmux.server.models import find_model
from embedmux.training.evaluate import Embed, Vectors

# Short name -> the public name of the same weights, which adapters carry as their base model.
PUBLIC_NAMES = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}


def public_name(model: str) -> str:
    """The name an adapter carries for its base model: a hub id stays, of a local folder only the last part is kept."""
    folder = Path(model).expanduser()
    return PUBLIC_NAMES.get(model) or (folder.resolve().name if folder.is_dir() else model)


def load_backbone(model: str) -> SentenceTransformer:
    """The encoder on the CPU with every weight frozen, in eval mode: training sees what the server will compute.

    `model` is anything the server takes: a packaged name such as `minilm`, a folder or a hub id.
    """
    backbone = SentenceTransformer(str(find_model(model)), device="cpu", local_files_only=True)
    return backbone.eval().requires_grad_(False)


def embedder(encoder: SentenceTransformer, prompts: Mapping[str, str], *, batch_size: int = 64) -> Embed:
    """An `embed` function over `encoder`: puts `prompts[role]` before each text and returns unit float32 vectors."""

    def embed(texts: list[str], *, task: str | None, role: str | None) -> Vectors:
        prompt = prompts.get(role, "") if role else ""
        with torch.inference_mode():
            vectors = encoder.encode(
                texts, prompt=prompt or None, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
            )
        return np.asarray(vectors, dtype=np.float32)

    return embed
