"""Checkpoints of every model family in exact layout, each with an independent reference and ways to get it wrong.

``ALL`` holds the families of the modules below, each of which exports ``FAMILIES``. It is made when first asked for,
so that one module can be used without loading the libraries of the others.
"""

from __future__ import annotations

import importlib
from typing import Any

MODULES: tuple[str, ...] = (  # one line each
    "jina_v5",
    "qwen3_embedding",
    "zembed",
    "e5_mistral",
    "gte_qwen2",
    "decoder_rerankers",
    "jina_reranker_v3",
    "modernbert",
    "modernbert_rerankers",
    "modern_colbert",
    "gte",
    "gte_rerankers",
    "nomic",
    "gemma",
    "jina_v3",
    "jina_colbert",
    "bert_embedders",
    "xlm_roberta_embedders",
    "bge_m3",
    "encoder_rerankers",
    "colbert",
)


def __getattr__(name: str) -> Any:
    if name != "ALL":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return tuple(family for module in MODULES for family in importlib.import_module(f"{__name__}.{module}").FAMILIES)
