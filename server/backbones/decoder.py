"""Pre-norm backbones with rotary positions and SwiGLU: Qwen3, Qwen2, Mistral, EuroBERT, and Jina v5 over either.

Names as in transformers' Qwen3Model. What tells the families apart stands in ``FLAVOURS``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from embedmux.server.backbones.layers import Attention, LoraLinear, PreNorm, Rotary, keep_pooled, split_heads, take_rows
from embedmux.server.backbones.rotary import read_theta
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.checkpoint.folder import Config
from embedmux.server.packed import Batch, FinalNorm, FusedLinear, LowRankTables, TokenStates

PREFIXES = ("model.",)


@dataclass(frozen=True, slots=True)
class Flavour:
    """How a family differs: who sees whom, a norm per head, biases on query, key and value."""

    is_causal: bool
    has_head_norms: bool = False
    is_biased: bool = False


FLAVOURS = {
    "qwen3": Flavour(is_causal=True, has_head_norms=True),
    "qwen2": Flavour(is_causal=True, is_biased=True),
    "mistral": Flavour(is_causal=True),
    "eurobert": Flavour(is_causal=False),
}


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of such a backbone; ``windows`` holds each layer's reach, -1 for none."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    max_positions: int
    norm_eps: float
    theta: float
    windows: tuple[int, ...]
    flavour: Flavour

    @property
    def is_causal(self) -> bool:
        """See Shape."""
        return self.flavour.is_causal

    @property
    def linears(self) -> tuple[FusedLinear, ...]:
        """See Shape."""
        query, key = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        hidden, inner = self.hidden_size, self.intermediate_size
        found: list[FusedLinear] = []
        for i in range(self.num_layers):
            attention, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
            widths = (("q_proj", query), ("k_proj", key), ("v_proj", key))
            found += [
                FusedLinear(
                    f"{attention}.qkv", tuple((f"{attention}.{part}", width) for part, width in widths), hidden
                ),
                FusedLinear(f"{attention}.o_proj", ((f"{attention}.o_proj", hidden),), query),
                FusedLinear(f"{mlp}.gate_up", ((f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner)), hidden),
                FusedLinear(f"{mlp}.down_proj", ((f"{mlp}.down_proj", hidden),), inner),
            ]
        return tuple(found)


def read_shape(config: Config) -> DecoderShape:
    """The shape in config.json; raises ModelRejected for what is not computed exactly."""
    flavour = FLAVOURS[_family(config)]
    config.require("hidden_act", "silu")
    config.require("attention_bias", flavour.is_biased)
    config.require("mlp_bias", False)
    config.require("is_causal", flavour.is_causal)
    num_heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
    if hidden % num_heads and config.get("head_dim") is None:
        config.reject("hidden_size", f"a multiple of num_attention_heads ({num_heads})")
    num_kv_heads = config.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        config.reject("num_attention_heads", f"a multiple of num_key_value_heads ({num_kv_heads})")
    num_layers = config.integer("num_hidden_layers")
    return DecoderShape(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=config.integer("head_dim", hidden // num_heads),
        intermediate_size=config.integer("intermediate_size"),
        max_positions=config.integer("max_position_embeddings"),
        norm_eps=config.number("rms_norm_eps"),
        theta=read_theta(config),
        windows=_windows(config, num_layers),
        flavour=flavour,
    )


def is_unused(name: str) -> bool:
    """The language model's head plays no part in embeddings."""
    return name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")


class Backbone:
    """Token ids of a packed batch in, token states out."""

    def __init__(
        self, shape: DecoderShape, checkpoint: Checkpoint, *, low_rank: LowRankTables, dtype: torch.dtype
    ) -> None:
        self.words = checkpoint.take("embed_tokens.weight", (shape.vocab_size, shape.hidden_size), dtype)
        rotary = Rotary(
            theta=shape.theta, size=shape.head_size, positions=shape.max_positions, device=checkpoint.device
        )
        linears = {linear.name: linear for linear in shape.linears}
        self.layers = [
            _Layer(shape, i, linears, checkpoint, rotary=rotary, low_rank=low_rank, dtype=dtype)
            for i in range(shape.num_layers)
        ]
        self.norm = FinalNorm("rms", checkpoint.take("norm.weight", (shape.hidden_size,)), None, shape.norm_eps)

    def __call__(self, batch: Batch) -> TokenStates:
        """See server/backbones/shape.py."""
        states, residual = take_rows(self.words, batch.token_ids), None
        for layer in self.layers[:-1]:
            states, residual = layer(states, residual, batch)
        states, residual = self.layers[-1](states, residual, batch, is_last=True)
        return TokenStates(states, batch.state_offsets, residual, self.norm)


class _Layer:
    """Norm, attention, norm, feed-forward; what each adds to the residual is added by the norm that follows."""

    def __init__(
        self, shape: DecoderShape, index: int, linears: dict[str, FusedLinear], checkpoint: Checkpoint, *,
        rotary: Rotary, low_rank: LowRankTables, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        name, flavour = f"layers.{index}", shape.flavour

        def linear(part: str, *, is_biased: bool = False, activation: str = "none") -> LoraLinear:
            return LoraLinear(
                linears[f"{name}.{part}"], checkpoint, low_rank=low_rank, dtype=dtype, is_biased=is_biased,
                activation=activation,
            )  # fmt: skip

        def norm(part: str) -> PreNorm:
            return PreNorm(f"{name}.{part}", checkpoint, size=shape.hidden_size, eps=shape.norm_eps, kind="rms")

        self.qkv = linear("self_attn.qkv", is_biased=flavour.is_biased)
        self.attention_out = linear("self_attn.o_proj")
        self.gate_up = linear("mlp.gate_up", activation="swiglu")
        self.down = linear("mlp.down_proj")
        self.attention_norm, self.feed_forward_norm = norm("input_layernorm"), norm("post_attention_layernorm")
        self.head_norms: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        if flavour.has_head_norms:
            size = (shape.head_size,)
            self.head_norms = (
                checkpoint.take(f"{name}.self_attn.q_norm.weight", size),
                checkpoint.take(f"{name}.self_attn.k_norm.weight", size),
            )
        self.rotary = rotary
        self.shape = shape
        self.attend = Attention(
            index, causal=flavour.is_causal, window=shape.windows[index], scale=shape.head_size**-0.5
        )

    def __call__(
        self, states: torch.Tensor, residual: torch.Tensor | None, batch: Batch, *, is_last: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """states and residual [T, hidden] -> the same of the next layer, of the pooled rows alone in the last."""
        shape, segments = self.shape, batch.segments
        normed, residual = self.attention_norm(states, residual)
        q, k, v = split_heads(
            self.qkv(normed, segments),
            num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads, head_size=shape.head_size,
        )  # fmt: skip
        q, k = self.rotary(q, k, batch.positions, *self.head_norms, shape.norm_eps)
        context = self.attend(q, k, v, batch, is_last=is_last)
        if is_last and batch.pooled is not None:
            context, residual = keep_pooled(batch.pooled, context, residual)
            segments = batch.pooled.segments
        normed, residual = self.feed_forward_norm(self.attention_out(context, segments), residual)
        return self.down(self.gate_up(normed, segments), segments), residual


def _family(config: Config) -> str:
    kind = config.string("model_type")
    if kind != "jina_embeddings_v5":
        return kind
    # Its two sizes share one model_type. Qwen3's configuration names the head size, EuroBERT's has none; the weights
    # settle it, since norms per head that are missing or left over are refused.
    return "qwen3" if config.get("head_dim") is not None else "eurobert"


def _windows(config: Config, num_layers: int) -> tuple[int, ...]:
    """Each layer's reach: transformers' sliding_window counts the token itself."""
    window = config.get("sliding_window")
    if window is None or config.get("use_sliding_window") is False:
        return (-1,) * num_layers
    reach = config.integer("sliding_window") - 1
    kinds = config.strings("layer_types", ["sliding_attention"] * num_layers)
    if len(kinds) != num_layers or set(kinds) - {"sliding_attention", "full_attention"}:
        config.reject("layer_types", f"sliding_attention or full_attention for each of the {num_layers} layers")
    return tuple(reach if kind == "sliding_attention" else -1 for kind in kinds)
