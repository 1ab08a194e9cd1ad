"""Backbones by architecture, each one file, imported only when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from embedmux.server.backbones.shape import Family

ARCHITECTURES = {
    "bert": "embedmux.server.backbones.bert",
    "decoder": "embedmux.server.backbones.decoder",
    "modernbert": "embedmux.server.backbones.modernbert",
    "gte": "embedmux.server.backbones.gte",
    "nomic_bert": "embedmux.server.backbones.nomic_bert",
    "gemma": "embedmux.server.backbones.gemma",
    "jina_v3": "embedmux.server.backbones.jina_v3",
}


def find_family(architecture: str) -> Family:
    """The module that computes an architecture, a key of ``ARCHITECTURES``."""
    return cast("Family", importlib.import_module(ARCHITECTURES[architecture]))
