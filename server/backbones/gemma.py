"""Gemma 3 that looks both ways, as EmbeddingGemma does: norms before and behind each block, sliding and full layers.

Names as in transformers' Gemma3TextModel. Norms multiply by 1 + weight; each head of queries and keys has one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from embedmux.server.backbones.layers import Attention, LoraLinear, PreNorm, Rotary, keep_pooled, split_heads, take_rows
from embedmux.server.backbones.rotary import PLAIN
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.checkpoint.folder import Config
from embedmux.server.packed import Batch, FinalNorm, FusedLinear, LowRankTables, TokenStates

PREFIXES = ("model.",)
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, slots=True)
class GemmaShape:
    """Sizes of such a backbone; ``is_sliding`` says of each layer whether ``window`` bounds it, and its rotary base."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    max_positions: int
    norm_eps: float
    scale: float
    window: int
    is_sliding: tuple[bool, ...]
    full_theta: float
    sliding_theta: float

    @property
    def is_causal(self) -> bool:
        """See Shape."""
        return False

    @property
    def linears(self) -> tuple[FusedLinear, ...]:
        """See Shape."""
        query, key = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        hidden, inner = self.hidden_size, self.intermediate_size
        found: list[FusedLinear] = []
        for i in range(self.num_layers):
            attention, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
            widths = (("q_proj", query), ("k_proj", key), ("v_proj", key))
            qkv = tuple((f"{attention}.{part}", width) for part, width in widths)
            found += [
                FusedLinear(f"{attention}.qkv", qkv, hidden),
                FusedLinear(f"{attention}.o_proj", ((f"{attention}.o_proj", hidden),), query),
                FusedLinear(f"{mlp}.gate_up", ((f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner)), hidden),
                FusedLinear(f"{mlp}.down_proj", ((f"{mlp}.down_proj", hidden),), inner),
            ]
        return tuple(found)


def read_shape(config: Config) -> GemmaShape:
    """The shape in config.json; raises ModelRejected for what is not computed exactly."""
    if config.get("use_bidirectional_attention") is not True:
        config.reject("use_bidirectional_attention", "true; the Gemma 3 that looks back only is not computed")
    config.require("hidden_activation", "gelu_pytorch_tanh")
    config.require("attention_bias", False)
    config.require("attn_logit_softcapping", None)
    num_heads, num_layers = config.integer("num_attention_heads"), config.integer("num_hidden_layers")
    num_kv_heads = config.integer("num_key_value_heads")
    if num_heads % num_kv_heads:
        config.reject("num_attention_heads", f"a multiple of num_key_value_heads ({num_kv_heads})")
    return GemmaShape(
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=config.integer("head_dim", 256),
        intermediate_size=config.integer("intermediate_size"),
        max_positions=config.integer("max_position_embeddings"),
        norm_eps=config.number("rms_norm_eps", 1e-6),
        scale=config.number("query_pre_attn_scalar", 256) ** -0.5,
        # The configuration counts the tokens on both sides, as transformers reads it.
        window=config.integer("sliding_window") // 2,
        is_sliding=_kinds(config, num_layers),
        full_theta=_theta(config, FULL, "rope_theta", 1e6),
        sliding_theta=_theta(config, SLIDING, "rope_local_base_freq", 1e4),
    )


def is_unused(name: str) -> bool:
    """The language model's head plays no part in embeddings."""
    return name == "lm_head.weight" or name.endswith("inv_freq")


class Backbone:
    """Token ids of a packed batch in, token states out."""

    def __init__(
        self, shape: GemmaShape, checkpoint: Checkpoint, *, low_rank: LowRankTables, dtype: torch.dtype
    ) -> None:
        self.words = checkpoint.take("embed_tokens.weight", (shape.vocab_size, shape.hidden_size), dtype)
        self.word_scale = shape.hidden_size**0.5

        def rotary(theta: float) -> Rotary:
            size, positions = shape.head_size, shape.max_positions
            return Rotary(theta=theta, size=size, positions=positions, device=checkpoint.device)

        full, sliding = rotary(shape.full_theta), rotary(shape.sliding_theta)
        linears = {linear.name: linear for linear in shape.linears}
        self.layers = [
            _Layer(
                shape, i, linears, checkpoint, rotary=sliding if is_sliding else full, low_rank=low_rank, dtype=dtype
            )
            for i, is_sliding in enumerate(shape.is_sliding)
        ]
        weight = checkpoint.take("norm.weight", (shape.hidden_size,)) + 1
        self.norm = FinalNorm("rms", weight, None, shape.norm_eps)

    def __call__(self, batch: Batch) -> TokenStates:
        """See server/backbones/shape.py."""
        states = take_rows(self.words, batch.token_ids) * self.word_scale
        residual: torch.Tensor | None = None
        for layer in self.layers[:-1]:
            states, residual = layer(states, residual, batch)
        states, residual = self.layers[-1](states, residual, batch, is_last=True)
        return TokenStates(states, batch.state_offsets, residual, self.norm)


class _Layer:
    """Norm, attention, norm, then norm, feed-forward, norm; the norm that follows adds what a block leaves."""

    def __init__(
        self, shape: GemmaShape, index: int, linears: dict[str, FusedLinear], checkpoint: Checkpoint, *,
        rotary: Rotary, low_rank: LowRankTables, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        name = f"layers.{index}"

        def linear(part: str, activation: str = "none") -> LoraLinear:
            return LoraLinear(
                linears[f"{name}.{part}"], checkpoint, low_rank=low_rank, dtype=dtype, is_biased=False,
                activation=activation,
            )  # fmt: skip

        def norm(part: str) -> PreNorm:
            return PreNorm(
                f"{name}.{part}_layernorm", checkpoint, size=shape.hidden_size, eps=shape.norm_eps, kind="rms",
                adds_one=True,
            )  # fmt: skip

        self.qkv, self.attention_out = linear("self_attn.qkv"), linear("self_attn.o_proj")
        self.gate_up, self.down = linear("mlp.gate_up", "geglu_tanh"), linear("mlp.down_proj")
        self.before_attention, self.behind_attention = norm("input"), norm("post_attention")
        self.before_feed_forward, self.behind_feed_forward = norm("pre_feedforward"), norm("post_feedforward")
        self.q_norm, self.k_norm = (
            checkpoint.take(f"{name}.self_attn.{part}_norm.weight", (shape.head_size,)) + 1 for part in "qk"
        )
        self.rotary = rotary
        self.shape = shape
        window = shape.window if shape.is_sliding[index] else -1
        self.attend = Attention(index, causal=False, window=window, scale=shape.scale)

    def __call__(
        self, states: torch.Tensor, residual: torch.Tensor | None, batch: Batch, *, is_last: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """states and residual [T, hidden] -> the same of the next layer, of the pooled rows alone in the last."""
        shape, segments = self.shape, batch.segments
        normed, residual = self.before_attention(states, residual)
        q, k, v = split_heads(
            self.qkv(normed, segments),
            num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads, head_size=shape.head_size,
        )  # fmt: skip
        q, k = self.rotary(q, k, batch.positions, self.q_norm, self.k_norm, shape.norm_eps)
        context = self.attend(q, k, v, batch, is_last=is_last)
        if is_last and batch.pooled is not None:
            context, residual = keep_pooled(batch.pooled, context, residual)
            segments = batch.pooled.segments
        behind, _ = self.behind_attention(self.attention_out(context, segments), None)
        normed, residual = self.before_feed_forward(behind, residual)
        behind, _ = self.behind_feed_forward(self.down(self.gate_up(normed, segments), segments), None)
        return behind, residual


def _kinds(config: Config, num_layers: int) -> tuple[bool, ...]:
    """Which layers slide: layer_types, else all but every sixth, or as sliding_window_pattern says."""
    pattern = "sliding_window_pattern" if config.get("sliding_window_pattern") else "_sliding_window_pattern"
    step = config.integer(pattern, 6)
    kinds = config.strings("layer_types", [FULL if i % step == step - 1 else SLIDING for i in range(num_layers)])
    if len(kinds) != num_layers or set(kinds) - {SLIDING, FULL}:
        config.reject("layer_types", f"{SLIDING} or {FULL} for each of the {num_layers} layers")
    return tuple(kind == SLIDING for kind in kinds)


def _theta(config: Config, kind: str, key: str, default: float) -> float:
    """The base of one kind of layer, in newer keys and older ones; raises ModelRejected for a scaling."""
    parameters = config.section("rope_parameters").section(kind)
    for section in (parameters, config.section("rope_scaling")):
        section.require("rope_type", *PLAIN)
    return parameters.number("rope_theta") if parameters.get("rope_theta") else config.number(key, default)
