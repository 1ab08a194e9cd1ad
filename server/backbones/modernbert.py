"""ModernBERT on packed sequences: pre-norm, gated feed-forward, full and sliding layers with rotary bases of their own.

Names as in transformers' ModernBertModel. Layer 0 has no norm before its attention: the embeddings' norm stands there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from embedmux.server.backbones.gates import read_gate
from embedmux.server.backbones.layers import Attention, LoraLinear, PreNorm, Rotary, keep_pooled, split_heads, take_rows
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.checkpoint.folder import Config
from embedmux.server.packed import Batch, FinalNorm, FusedLinear, LowRankTables, TokenStates

PREFIXES = ("model.",)
FULL, SLIDING = "full_attention", "sliding_attention"
THETAS = {FULL: ("global_rope_theta", 160000.0), SLIDING: ("local_rope_theta", 10000.0)}  # older keys, and defaults


@dataclass(frozen=True, slots=True)
class ModernBertShape:
    """Sizes of such an encoder. ``kinds`` says of each layer whether it is full or sliding, ``window`` how far a
    sliding one reaches on each side; ``thetas`` are the rotary bases of full and of sliding layers."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    norm_eps: float
    kinds: tuple[str, ...]
    window: int
    thetas: tuple[float, float]
    activation: str
    has_norm_bias: bool
    has_attention_bias: bool
    has_feed_forward_bias: bool

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
        """See Shape. The first half of Wi's rows is the one that the activation is of."""
        hidden, inner = self.hidden_size, self.intermediate_size
        found: list[FusedLinear] = []
        for i in range(self.num_layers):
            attention, mlp = f"layers.{i}.attn", f"layers.{i}.mlp"
            found += [
                FusedLinear(f"{attention}.Wqkv", ((f"{attention}.Wqkv", 3 * hidden),), hidden),
                FusedLinear(f"{attention}.Wo", ((f"{attention}.Wo", hidden),), hidden),
                FusedLinear(f"{mlp}.Wi", ((f"{mlp}.Wi", inner), (f"{mlp}.Wi", inner)), hidden, starts=(0, inner)),
                FusedLinear(f"{mlp}.Wo", ((f"{mlp}.Wo", hidden),), inner),
            ]
        return tuple(found)


def read_shape(config: Config) -> ModernBertShape:
    """The shape in config.json; raises ModelRejected for what is not computed exactly."""
    hidden, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if hidden % num_heads:
        config.reject("hidden_size", f"a multiple of num_attention_heads ({num_heads})")
    num_layers = config.integer("num_hidden_layers")
    return ModernBertShape(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=num_layers,
        num_heads=num_heads,
        intermediate_size=config.integer("intermediate_size"),
        max_positions=config.integer("max_position_embeddings"),
        norm_eps=config.number("norm_eps", 1e-5),  # layer_norm_eps stands in published configs too, and is not read
        kinds=_kinds(config, num_layers),
        window=config.integer("local_attention", 128) // 2,
        thetas=_thetas(config),
        activation=read_gate(config, "hidden_activation"),
        has_norm_bias=config.flag("norm_bias", False),
        has_attention_bias=config.flag("attention_bias", False),
        has_feed_forward_bias=config.flag("mlp_bias", False),
    )


def is_unused(name: str) -> bool:
    """The head of masked language models."""
    return name.startswith(("head.", "decoder."))


class Backbone:
    """Token ids of a packed batch in, token states out."""

    def __init__(
        self, shape: ModernBertShape, checkpoint: Checkpoint, *, low_rank: LowRankTables, dtype: torch.dtype
    ) -> None:
        hidden = shape.hidden_size
        self.words = checkpoint.take("embeddings.tok_embeddings.weight", (shape.vocab_size, hidden), dtype)
        self.norm = _norm(shape, "embeddings.norm", checkpoint)
        rotary = {
            kind: Rotary(theta=theta, size=shape.head_size, positions=shape.max_positions, device=checkpoint.device)
            for kind, theta in zip((FULL, SLIDING), shape.thetas, strict=True)
        }
        linears = {linear.name: linear for linear in shape.linears}
        self.layers = [
            _Layer(shape, i, linears, checkpoint, rotary=rotary[kind], low_rank=low_rank, dtype=dtype)
            for i, kind in enumerate(shape.kinds)
        ]
        weight = checkpoint.take("final_norm.weight", (hidden,))
        bias = checkpoint.take("final_norm.bias", (hidden,)) if shape.has_norm_bias else None
        self.final_norm = FinalNorm("layer", weight, bias, shape.norm_eps)

    def __call__(self, batch: Batch) -> TokenStates:
        """See server/backbones/shape.py."""
        states, _ = self.norm(take_rows(self.words, batch.token_ids), None)
        residual: torch.Tensor | None = None
        for layer in self.layers[:-1]:
            states, residual = layer(states, residual, batch)
        states, residual = self.layers[-1](states, residual, batch, is_last=True)
        return TokenStates(states, batch.state_offsets, residual, self.final_norm)


class _Layer:
    """Norm, attention, norm, feed-forward; what each adds to the residual is added by the norm that follows."""

    def __init__(
        self, shape: ModernBertShape, index: int, linears: dict[str, FusedLinear], checkpoint: Checkpoint, *,
        rotary: Rotary, low_rank: LowRankTables, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        name = f"layers.{index}"

        def linear(part: str, *, is_biased: bool, activation: str = "none") -> LoraLinear:
            return LoraLinear(
                linears[f"{name}.{part}"], checkpoint, low_rank=low_rank, dtype=dtype, is_biased=is_biased,
                activation=activation,
            )  # fmt: skip

        self.qkv = linear("attn.Wqkv", is_biased=shape.has_attention_bias)
        self.attention_out = linear("attn.Wo", is_biased=shape.has_attention_bias)
        self.up = linear("mlp.Wi", is_biased=shape.has_feed_forward_bias, activation=shape.activation)
        self.down = linear("mlp.Wo", is_biased=shape.has_feed_forward_bias)
        self.attention_norm = _norm(shape, f"{name}.attn_norm", checkpoint) if index else None
        self.feed_forward_norm = _norm(shape, f"{name}.mlp_norm", checkpoint)
        self.rotary = rotary
        self.heads = {"num_heads": shape.num_heads, "num_kv_heads": shape.num_heads, "head_size": shape.head_size}
        window = shape.window if shape.kinds[index] == SLIDING else -1
        self.attend = Attention(index, causal=False, window=window, scale=shape.head_size**-0.5)

    def __call__(
        self, states: torch.Tensor, residual: torch.Tensor | None, batch: Batch, *, is_last: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """states and residual [T, hidden] -> the same of the next layer, of the pooled rows alone in the last."""
        segments = batch.segments
        normed, residual = self.attention_norm(states, residual) if self.attention_norm else (states, states)
        q, k, v = split_heads(self.qkv(normed, segments), **self.heads)
        q, k = self.rotary(q, k, batch.positions)
        context = self.attend(q, k, v, batch, is_last=is_last)
        if is_last and batch.pooled is not None:
            context, residual = keep_pooled(batch.pooled, context, residual)
            segments = batch.pooled.segments
        normed, residual = self.feed_forward_norm(self.attention_out(context, segments), residual)
        return self.down(self.up(normed, segments), segments), residual


def _norm(shape: ModernBertShape, name: str, checkpoint: Checkpoint) -> PreNorm:
    return PreNorm(
        name, checkpoint, size=shape.hidden_size, eps=shape.norm_eps, kind="layer",
        is_biased=shape.has_norm_bias,
    )  # fmt: skip


def _kinds(config: Config, num_layers: int) -> tuple[str, ...]:
    """Each layer's kind: listed, or every n-th full from the first on."""
    every = config.integer("global_attn_every_n_layers", 3)
    kinds = config.strings("layer_types", [SLIDING if i % every else FULL for i in range(num_layers)])
    if len(kinds) != num_layers or set(kinds) - {FULL, SLIDING}:
        config.reject("layer_types", f"{SLIDING} or {FULL} for each of the {num_layers} layers")
    return kinds


def _thetas(config: Config) -> tuple[float, float]:
    """The rotary bases of full and of sliding layers, in transformers' newer keys or in its older ones."""
    parameters = config.section("rope_parameters")
    found: list[float] = []
    config.section("rope_scaling").require("rope_type", "default")
    config.section("rope_scaling").require("type", "default")
    for kind, (key, default) in THETAS.items():
        section = parameters.section(kind)
        section.require("rope_type", "default")
        if key in config.values and config.values[key] is None:
            default = found[0] if found else default  # local_rope_theta null: as the full layers
        found.append(section.number("rope_theta", config.number(key, default)))
    return found[0], found[1]
