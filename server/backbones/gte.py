"""GTE v1.5 on packed sequences: BERT's post-norm with rotary positions and a gated feed-forward.

Names as in Alibaba's NewModel, which transformers' GteModel reads and writes too. Source of its static NTK scaling:
kexue.fm/archives/9706; transformers' configs state the same as a linear scaling of a larger base.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from embedmux.server.backbones.gates import read_gate
from embedmux.server.backbones.layers import (
    AddLayerNorm,
    Attention,
    LoraLinear,
    Rotary,
    keep_pooled,
    split_heads,
    take_rows,
)
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.checkpoint.folder import Config
from embedmux.server.packed import Batch, FusedLinear, LowRankTables, TokenStates

PREFIXES = ("new.", "gte.")


@dataclass(frozen=True, slots=True)
class GteShape:
    """Sizes of such an encoder. ``num_types`` may be 0; the rotary frequencies are theta^(-2 i / head) / divisor."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    num_types: int
    norm_eps: float
    theta: float
    divisor: float
    activation: str
    is_packed: bool  # query, key and value are stored as one linear

    @property
    def num_kv_heads(self) -> int:
        """See Shape."""
        return self.num_heads

    @property
    def head_size(self) -> int:
        """See Shape."""
        return self.hidden_size // self.num_heads

    @property
    def is_causal(self) -> bool:
        """See Shape."""
        return False

    @property
    def linears(self) -> tuple[FusedLinear, ...]:
        """See Shape. up_gate_proj has the rows of up first; those of the gate, which is activated, go before them."""
        hidden, inner = self.hidden_size, self.intermediate_size
        found: list[FusedLinear] = []
        for i in range(self.num_layers):
            attention, mlp = f"encoder.layer.{i}.attention", f"encoder.layer.{i}.mlp"
            packed, parts = f"{attention}.qkv_proj", [f"{attention}.{part}_proj" for part in "qkv"]
            qkv = ((packed, 3 * hidden),) if self.is_packed else tuple((part, hidden) for part in parts)
            halves = ((f"{mlp}.up_gate_proj", inner), (f"{mlp}.up_gate_proj", inner))
            found += [
                FusedLinear(packed, qkv, hidden),
                FusedLinear(f"{attention}.o_proj", ((f"{attention}.o_proj", hidden),), hidden),
                FusedLinear(f"{mlp}.up_gate_proj", halves, hidden, starts=(inner, 0)),
                FusedLinear(f"{mlp}.down_proj", ((f"{mlp}.down_proj", hidden),), inner),
            ]
        return tuple(found)


def read_shape(config: Config) -> GteShape:
    """The shape in config.json; raises ModelRejected for what is not computed exactly."""
    config.require("position_embedding_type", "rope")
    config.require("layer_norm_type", "layer_norm")
    config.require("logn_attention_scale", False)
    hidden, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if hidden % num_heads:
        config.reject("hidden_size", f"a multiple of num_attention_heads ({num_heads})")
    theta, divisor = _rotary(config, hidden // num_heads)
    return GteShape(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=config.integer("num_hidden_layers"),
        num_heads=num_heads,
        intermediate_size=config.integer("intermediate_size"),
        max_positions=config.integer("max_position_embeddings"),
        num_types=config.integer("type_vocab_size", 1, least=0),
        norm_eps=config.number("layer_norm_eps", 1e-12),
        theta=theta,
        divisor=divisor,
        activation=read_gate(config, "hidden_act"),
        is_packed=config.flag("pack_qkv", True),
    )


def is_unused(name: str) -> bool:
    """The pooler and the heads of masked language models and of token classifiers."""
    return name.startswith(("pooler.", "lm_head.", "classifier.")) or name == "embeddings.position_ids"


class Backbone:
    """Token ids of a packed batch in, token states out."""

    def __init__(self, shape: GteShape, checkpoint: Checkpoint, *, low_rank: LowRankTables, dtype: torch.dtype) -> None:
        hidden, types = shape.hidden_size, "embeddings.token_type_embeddings.weight"
        self.words = checkpoint.take("embeddings.word_embeddings.weight", (shape.vocab_size, hidden), dtype)
        self.types = checkpoint.take(types, (shape.num_types, hidden), dtype) if shape.num_types else None
        self.norm = _norm(shape, "embeddings.LayerNorm", checkpoint, dtype)
        rotary = Rotary(
            theta=shape.theta, size=shape.head_size, positions=shape.max_positions, device=checkpoint.device,
            divisor=shape.divisor,
        )  # fmt: skip
        linears = {linear.name: linear for linear in shape.linears}
        self.layers = [
            _Layer(shape, i, linears, checkpoint, rotary=rotary, low_rank=low_rank, dtype=dtype)
            for i in range(shape.num_layers)
        ]

    def __call__(self, batch: Batch) -> TokenStates:
        """See server/backbones/shape.py."""
        states = self.norm(take_rows(self.words, batch.token_ids), self._types(batch))
        for layer in self.layers[:-1]:
            states = layer(states, batch)
        states = self.layers[-1](states, batch, is_last=True)
        return TokenStates(states, batch.state_offsets)

    def _types(self, batch: Batch) -> torch.Tensor | None:
        """The embedding of each token's type; with one type, that of every token."""
        if self.types is None:
            return None
        types = batch.types if len(self.types) > 1 else torch.zeros_like(batch.types)
        return take_rows(self.types, types)


class _Layer:
    """Attention and feed-forward, each followed by residual + LayerNorm."""

    def __init__(
        self, shape: GteShape, index: int, linears: dict[str, FusedLinear], checkpoint: Checkpoint, *,
        rotary: Rotary, low_rank: LowRankTables, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        name = f"encoder.layer.{index}"

        def linear(part: str, *, is_biased: bool = True, activation: str = "none") -> LoraLinear:
            return LoraLinear(
                linears[f"{name}.{part}"], checkpoint, low_rank=low_rank, dtype=dtype, is_biased=is_biased,
                activation=activation,
            )  # fmt: skip

        self.qkv = linear("attention.qkv_proj")
        self.attention_out = linear("attention.o_proj")
        self.up = linear("mlp.up_gate_proj", is_biased=False, activation=shape.activation)
        self.down = linear("mlp.down_proj")
        self.attention_norm = _norm(shape, f"{name}.attn_ln", checkpoint, dtype)
        self.output_norm = _norm(shape, f"{name}.mlp_ln", checkpoint, dtype)
        self.rotary = rotary
        self.heads = {"num_heads": shape.num_heads, "num_kv_heads": shape.num_heads, "head_size": shape.head_size}
        self.attend = Attention(index, causal=False, window=-1, scale=shape.head_size**-0.5)

    def __call__(self, states: torch.Tensor, batch: Batch, *, is_last: bool = False) -> torch.Tensor:
        """states [T, hidden] -> [T, hidden], of the pooled rows alone in the last layer."""
        segments = batch.segments
        q, k, v = split_heads(self.qkv(states, segments), **self.heads)
        q, k = self.rotary(q, k, batch.positions)
        context = self.attend(q, k, v, batch, is_last=is_last)
        if is_last and batch.pooled is not None:
            context, states = keep_pooled(batch.pooled, context, states)
            segments = batch.pooled.segments
        states = self.attention_norm(self.attention_out(context, segments), states)
        return self.output_norm(self.down(self.up(states, segments), segments), states)


def _norm(shape: GteShape, name: str, checkpoint: Checkpoint, dtype: torch.dtype) -> AddLayerNorm:
    return AddLayerNorm(name, checkpoint, size=shape.hidden_size, eps=shape.norm_eps, dtype=dtype)


def _rotary(config: Config, head_size: int) -> tuple[float, float]:
    """(base, what its frequencies are divided by) of rope_parameters, or of rope_theta with rope_scaling."""
    parameters = config.section("rope_parameters")
    base = parameters if parameters.get("rope_theta") is not None else config
    theta = base.number("rope_theta")
    scaling = parameters if parameters.values else config.section("rope_scaling")
    key = "rope_type" if scaling.get("rope_type") is not None else "type"
    kind = scaling.get(key, "default")
    if kind == "default":
        return theta, 1.0
    if kind not in ("linear", "ntk"):
        scaling.reject(key, "ntk, linear or default")
    if scaling.get("mixed_b") is not None:
        scaling.reject("mixed_b", "absent: this version computes the scaling without it")
    factor = scaling.number("factor")
    return (theta, factor) if kind == "linear" else (theta * factor, factor ** (2 / head_size))
