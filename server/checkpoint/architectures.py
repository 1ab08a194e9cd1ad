"""The model types this version computes: which backbone runs them, and how many positions they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from embedmux.server.checkpoint.folder import Config

FLASH = "xlm-roberta-flash"  # our name for Jina's XLM-R code, whose configs name no model_type or that of XLM-R


def _positions(config: Config) -> int:
    return config.integer("max_position_embeddings")


def _positions_behind_padding(config: Config) -> int:
    """XLM-R numbers positions from padding_idx + 1, so that the table's first rows are nobody's."""
    return _positions(config) - config.integer("pad_token_id", 1, least=0) - 1


def _nomic_positions(config: Config) -> int:
    """Without those behind the trained ones where their angles would depend on the longest text of a batch."""
    found = config.integer("n_positions") if config.get("n_positions") else _positions(config)
    is_scaled = config.get("rotary_scaling_factor") is not None
    return min(found, config.integer("max_trained_positions")) if is_scaled else found


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
    FLASH: Architecture("jina_v3", code=("XLMRoberta",)),
}


def read_model_type(config: Config) -> str:
    """model_type of config.json; raises ModelRejected for one that is not computed here."""
    if any(name.startswith("XLMRobertaFlash") for name in own_classes(config)):
        if config.get("position_embedding_type") != "rotary":
            config.reject(
                "position_embedding_type", "'rotary'; Jina's XLM-R code with learned positions is not computed"
            )
        return FLASH
    found = config.string("model_type")
    if found not in ARCHITECTURES or found == FLASH:
        config.reject("model_type", f"one of {', '.join(sorted(set(ARCHITECTURES) - {FLASH}))}")
    return found


def hidden_size(config: Config) -> int:
    """Values of a token's state; Nomic's own code calls it n_embd."""
    return config.integer("n_embd") if config.get("n_embd") else config.integer("hidden_size")


def own_classes(config: Config) -> list[str]:
    """The classes that auto_map names: code that the checkpoint brings along or fetches."""
    named = config.section("auto_map").values.values()
    paths = [path for entry in named for path in (entry if isinstance(entry, list) else [entry])]
    return sorted({str(path).rpartition(".")[2] for path in paths if path is not None})
