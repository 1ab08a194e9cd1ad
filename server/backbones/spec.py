"""config.json -> Spec: the shape of a backbone, without torch and without weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedmux.server.errors import ModelRejected
from embedmux.server.packed import FusedLinear
from embedmux.server.records import Pooling


@dataclass(frozen=True, slots=True)
class Spec:
    """A BERT-family encoder's shape, and how its token states become a vector."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    norm_eps: float
    pooling: Pooling
    max_tokens: int

    @property
    def linears(self) -> tuple[FusedLinear, ...]:
        """Every matmul that an adapter may change, in the order of the forward pass."""
        hidden, inner = self.hidden_size, self.intermediate_size
        found: list[FusedLinear] = []
        for i in range(self.num_layers):
            layer, attention = f"encoder.layer.{i}", f"encoder.layer.{i}.attention"
            qkv = tuple((f"{attention}.self.{part}", hidden) for part in ("query", "key", "value"))
            found += [
                FusedLinear(f"{attention}.self.qkv", qkv, hidden),
                FusedLinear(f"{attention}.output.dense", ((f"{attention}.output.dense", hidden),), hidden),
                FusedLinear(f"{layer}.intermediate.dense", ((f"{layer}.intermediate.dense", inner),), hidden),
                FusedLinear(f"{layer}.output.dense", ((f"{layer}.output.dense", hidden),), inner),
            ]
        return tuple(found)

    @property
    def targets(self) -> dict[str, tuple[int, int]]:
        """Checkpoint name of every linear an adapter may change -> (in_features, out_features)."""
        return {name: (linear.in_features, width) for linear in self.linears for name, width in linear.slices}


def load_spec(folder: Path) -> Spec:
    """Reads config.json, 1_Pooling/config.json and sentence_bert_config.json of a model folder.

    Raises ModelRejected, naming the key, for anything this version does not compute exactly.
    """
    config = read_json(folder / "config.json")
    architecture = config.get("model_type")
    if architecture != "bert":
        raise ModelRejected(f"model {folder.name!r} has model_type {architecture!r}; this version serves: bert")
    _require(folder, config, "hidden_act", "gelu")
    _require(folder, config, "position_embedding_type", "absolute")
    _require(folder, config, "is_decoder", False)
    max_positions = int(config["max_position_embeddings"])
    limit = read_json(folder / "sentence_bert_config.json", optional=True).get("max_seq_length")
    spec = Spec(
        architecture=architecture,
        vocab_size=int(config["vocab_size"]),
        hidden_size=int(config["hidden_size"]),
        num_layers=int(config["num_hidden_layers"]),
        num_heads=int(config["num_attention_heads"]),
        intermediate_size=int(config["intermediate_size"]),
        max_positions=max_positions,
        norm_eps=float(config.get("layer_norm_eps", 1e-12)),
        pooling=_pooling(folder),
        max_tokens=min(int(limit or max_positions), max_positions),
    )
    if spec.hidden_size % spec.num_heads:
        raise ModelRejected(
            f"model {folder.name!r}: hidden_size {spec.hidden_size} is no multiple of "
            f"num_attention_heads {spec.num_heads}"
        )
    return spec


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """A JSON object from a model folder; {} where it may be absent and is."""
    if optional and not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelRejected(f"model {path.parent.name!r}: cannot read {path.name}: {error}") from error
    if not isinstance(found, dict):
        raise ModelRejected(f"model {path.parent.name!r}: {path.name} holds {type(found).__name__}, not an object")
    return found


def _require(folder: Path, config: dict[str, Any], key: str, wanted: object) -> None:
    if config.get(key, wanted) != wanted:
        raise ModelRejected(f"model {folder.name!r}: {key} is {config[key]!r}; this version computes {wanted!r} only")


def _pooling(folder: Path) -> Pooling:
    """The pooling of sentence-transformers' 1_Pooling/config.json, in its old (flags) and new (name) form."""
    config = read_json(folder / "1_Pooling" / "config.json", optional=True)
    modes = config.get("pooling_mode")
    if modes is None:
        names = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}
        flags = [
            key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on
        ]
        modes = [names.get(flag, flag) for flag in flags] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    names_now = {"lasttoken": "last"}
    known = {pooling.value for pooling in Pooling}
    if len(modes) != 1 or names_now.get(modes[0], modes[0]) not in known:
        raise ModelRejected(f"model {folder.name!r}: pooling {modes}; this version does one of {sorted(known)}")
    if config.get("include_prompt") is False:
        raise ModelRejected(
            f"model {folder.name!r}: include_prompt is false; this version pools the prompt's tokens too"
        )
    return Pooling(names_now.get(modes[0], modes[0]))
