"""The model types this version computes: which backbone runs them, and how many positions they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from embedmux.server.checkpoint.folder import Config


def _positions(config: Config) -> int:
    return config.integer("max_position_embeddings")


def _positions_behind_padding(config: Config) -> int:
    """XLM-R numbers positions from padding_idx + 1, so that the table's first rows are nobody's."""
    return _positions(config) - config.integer("pad_token_id", 1, least=0) - 1


def _nomic_positions(config: Config) -> int:
    return config.integer("n_positions") if config.get("n_positions") else _positions(config)


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model_type. ``code``: how the names of its published remote code start, which is computed here instead."""

    backbone: str  # a key of server/backbones
    positions: Callable[[Config], int] = _positions
    code: tuple[str, ...] = ()


ARCHITECTURES = {
    "bert": Architecture("bert"),
    "xlm-roberta": Architecture("bert", _positions_behind_padding),
    "roberta": Architecture("bert", _positions_behind_padding),
    "qwen2": Architecture("decoder"),
    "qwen3": Architecture("decoder"),
    "mistral": Architecture("decoder"),
    "eurobert": Architecture("decoder", code=("EuroBert",)),
    "jina_embeddings_v5": Architecture("decoder", code=("JinaEmbeddingsV5",)),
    "modernbert": Architecture("modernbert"),
    "gte": Architecture("gte", code=("Gte",)),
    "new": Architecture("gte", code=("New",)),
    "nomic_bert": Architecture("nomic_bert", _nomic_positions, code=("NomicBert",)),
    "gemma3_text": Architecture("gemma"),
    "jina_embeddings_v3": Architecture("jina_v3"),
}


def hidden_size(config: Config) -> int:
    """Values of a token's state; Nomic's own code calls it n_embd."""
    return config.integer("n_embd") if config.get("n_embd") else config.integer("hidden_size")


def foreign_code(config: Config, allowed: tuple[str, ...]) -> list[str]:
    """The classes that auto_map names and that are not the published code of a model type computed here."""
    named = config.section("auto_map").values.values()
    paths = [path for entry in named for path in (entry if isinstance(entry, list) else [entry])]
    classes = {str(path).rpartition(".")[2] for path in paths if path is not None}
    return sorted(name for name in classes if not name.startswith(allowed or ("\0",)))
