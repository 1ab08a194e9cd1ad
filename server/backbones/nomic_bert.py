"""Nomic BERT on packed sequences: BERT's post-norm with rotary positions and SwiGLU, without biases but the norms'.

Names as in Nomic's own code, which transformers' NomicBertModel reads and writes too. Its config.json has the keys of
that code (n_embd), those of transformers (hidden_size), or both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from embedmux.server.backbones.layers import (
    AddLayerNorm,
    Attention,
    LoraLinear,
    Rotary,
    keep_pooled,
    split_heads,
    take_rows,
)
from embedmux.server.backbones.rotary import read_theta
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.checkpoint.architectures import ARCHITECTURES
from embedmux.server.checkpoint.folder import Config
from embedmux.server.packed import Batch, FusedLinear, LowRankTables, TokenStates

PREFIXES = ("nomic_bert.", "bert.")
# What Nomic's code can be told to do and does in no model that is served.
REQUIRED = {
    "prenorm": False, "parallel_block": False, "causal": False, "use_rms_norm": False, "qkv_proj_bias": False,
    "mlp_fc1_bias": False, "mlp_fc2_bias": False, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None, "num_experts": 0, "moe_every_n_layers": 0, "hidden_act": "silu",
    "activation_function": "swiglu",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class NomicShape:
    """Sizes of such an encoder."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    num_types: int
    norm_eps: float
    theta: float

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
        """See Shape. fc12 is the gate, fc11 what it opens."""
        hidden, inner = self.hidden_size, self.intermediate_size
        found: list[FusedLinear] = []
        for i in range(self.num_layers):
            attn, mlp = f"encoder.layers.{i}.attn", f"encoder.layers.{i}.mlp"
            found += [
                FusedLinear(f"{attn}.Wqkv", ((f"{attn}.Wqkv", 3 * hidden),), hidden),
                FusedLinear(f"{attn}.out_proj", ((f"{attn}.out_proj", hidden),), hidden),
                FusedLinear(f"{mlp}.fc1", ((f"{mlp}.fc12", inner), (f"{mlp}.fc11", inner)), hidden),
                FusedLinear(f"{mlp}.fc2", ((f"{mlp}.fc2", hidden),), inner),
            ]
        return tuple(found)


def read_shape(config: Config) -> NomicShape:
    """The shape in config.json; raises ModelRejected for what is not computed exactly."""
    for key, value in REQUIRED.items():
        config.require(key, value)
    hidden, num_heads = _integer(config, "n_embd", "hidden_size"), _integer(config, "n_head", "num_attention_heads")
    if hidden % num_heads:
        config.reject("n_embd", f"a multiple of the heads ({num_heads})")
    config.require("num_heads_kv", num_heads)
    config.require("head_dim", hidden // num_heads)
    eps = "layer_norm_epsilon" if config.get("layer_norm_epsilon") is not None else "layer_norm_eps"
    return NomicShape(
        vocab_size=_vocabulary(config),
        hidden_size=hidden,
        num_layers=_integer(config, "n_layer", "num_hidden_layers"),
        num_heads=num_heads,
        intermediate_size=_integer(config, "n_inner", "intermediate_size"),
        # Without those at which Nomic's code moves the rotary base with the longest text of a batch.
        max_positions=ARCHITECTURES["nomic_bert"].positions(config),
        num_types=config.integer("type_vocab_size", 2),
        norm_eps=config.number(eps),
        theta=_theta(config),
    )


def is_unused(name: str) -> bool:
    """The pooler, the head of the masked language model, and frequencies that older code stored."""
    return name.startswith(("pooler.", "cls.")) or name.endswith("rotary_emb.inv_freq")


class Backbone:
    """Token ids of a packed batch in, token states out."""

    def __init__(
        self, shape: NomicShape, checkpoint: Checkpoint, *, low_rank: LowRankTables, dtype: torch.dtype
    ) -> None:
        hidden, types = shape.hidden_size, "embeddings.token_type_embeddings.weight"
        self.words = checkpoint.take("embeddings.word_embeddings.weight", (shape.vocab_size, hidden), dtype)
        self.types = checkpoint.take(types, (shape.num_types, hidden), dtype)
        self.norm = _norm(shape, "emb_ln", checkpoint, dtype)
        rotary = Rotary(
            theta=shape.theta, size=shape.head_size, positions=shape.max_positions, device=checkpoint.device
        )
        linears = {linear.name: linear for linear in shape.linears}
        self.layers = [
            _Layer(shape, i, linears, checkpoint, rotary=rotary, low_rank=low_rank, dtype=dtype)
            for i in range(shape.num_layers)
        ]

    def __call__(self, batch: Batch) -> TokenStates:
        """See server/backbones/shape.py."""
        kinds = batch.types if len(self.types) > 1 else torch.zeros_like(batch.types)
        states = self.norm(take_rows(self.words, batch.token_ids), take_rows(self.types, kinds))
        for layer in self.layers[:-1]:
            states = layer(states, batch)
        states = self.layers[-1](states, batch, is_last=True)
        return TokenStates(states, batch.state_offsets)


class _Layer:
    """Attention and feed-forward, each followed by residual + LayerNorm."""

    def __init__(
        self, shape: NomicShape, index: int, linears: dict[str, FusedLinear], checkpoint: Checkpoint, *,
        rotary: Rotary, low_rank: LowRankTables, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        name = f"encoder.layers.{index}"

        def linear(part: str, activation: str = "none") -> LoraLinear:
            return LoraLinear(
                linears[f"{name}.{part}"], checkpoint, low_rank=low_rank, dtype=dtype, is_biased=False,
                activation=activation,
            )  # fmt: skip

        self.qkv, self.attention_out = linear("attn.Wqkv"), linear("attn.out_proj")
        self.gate_up, self.down = linear("mlp.fc1", "swiglu"), linear("mlp.fc2")
        self.attention_norm = _norm(shape, f"{name}.norm1", checkpoint, dtype)
        self.output_norm = _norm(shape, f"{name}.norm2", checkpoint, dtype)
        self.heads = {"num_heads": shape.num_heads, "num_kv_heads": shape.num_heads, "head_size": shape.head_size}
        self.rotary = rotary
        self.attend = Attention(index, causal=False, window=-1, scale=shape.head_size**-0.5)

    def __call__(self, states: torch.Tensor, batch: Batch, *, is_last: bool = False) -> torch.Tensor:
        """states [T, hidden] -> [T, hidden], of the pooled rows alone in the last layer."""
        segments = batch.segments
        q, k, v = split_heads(self.qkv(states, segments), **self.heads)
        context = self.attend(*self.rotary(q, k, batch.positions), v, batch, is_last=is_last)
        if is_last and batch.pooled is not None:
            context, states = keep_pooled(batch.pooled, context, states)
            segments = batch.pooled.segments
        states = self.attention_norm(self.attention_out(context, segments), states)
        return self.output_norm(self.down(self.gate_up(states, segments), segments), states)


def _norm(shape: NomicShape, name: str, checkpoint: Checkpoint, dtype: torch.dtype) -> AddLayerNorm:
    return AddLayerNorm(name, checkpoint, size=shape.hidden_size, eps=shape.norm_eps, dtype=dtype)


def _integer(config: Config, own: str, other: str) -> int:
    """A size by the name that Nomic's code has for it, else by transformers' name."""
    return config.integer(own if config.get(own) is not None else other)


def _vocabulary(config: Config) -> int:
    """Rows of the embedding: vocab_size, filled up to what Nomic's code rounds it to."""
    step = config.integer("pad_vocab_size_multiple", 1)
    return -(-config.integer("vocab_size") // step) * step


def _theta(config: Config) -> float:
    parameters = config.section("rope_parameters")
    if parameters.get("rope_theta") is None and config.get("rope_theta") is None:
        return config.number("rotary_emb_base")
    theta = read_theta(config)
    config.require("rotary_emb_base", theta)
    return theta
