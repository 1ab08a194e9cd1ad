"""Jina embeddings v3 on packed sequences: XLM-R's post-norm with rotary positions; adapters change the words as well.

Names as in Jina's own code, which transformers' JinaEmbeddingsV3Model reads and writes too. The models without task
adapters on the same code, such as jina-colbert-v2, are computed likewise. A weight with updates beside it is stored
as torch's parametrizations name it; see weights.py, and adapters/stacked.py for the updates.
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
from embedmux.server.backbones.lookup import LoraLookup
from embedmux.server.backbones.rotary import read_theta
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.checkpoint.folder import Config
from embedmux.server.packed import Batch, FusedLinear, LowRankTables, TokenStates

PREFIXES = ("roberta.",)
WORDS, TYPES = "embeddings.word_embeddings", "embeddings.token_type_embeddings"


@dataclass(frozen=True, slots=True)
class JinaShape:
    """Sizes of such an encoder. ``lookup_rank`` bounds the updates of the words; 0 where there are none.

    A task's update of the one token type is the same for every token and counts as one more rank of the words'.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    num_types: int
    norm_eps: float
    theta: float
    lookup_rank: int

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
        """See Shape."""
        hidden, inner = self.hidden_size, self.intermediate_size
        words = FusedLinear(WORDS, ((WORDS, hidden),), self.vocab_size, is_lookup=True)
        found = [words] if self.lookup_rank else []
        for i in range(self.num_layers):
            mixer, mlp = f"encoder.layers.{i}.mixer", f"encoder.layers.{i}.mlp"
            found += [
                FusedLinear(f"{mixer}.Wqkv", ((f"{mixer}.Wqkv", 3 * hidden),), hidden),
                FusedLinear(f"{mixer}.out_proj", ((f"{mixer}.out_proj", hidden),), hidden),
                FusedLinear(f"{mlp}.fc1", ((f"{mlp}.fc1", inner),), hidden),
                FusedLinear(f"{mlp}.fc2", ((f"{mlp}.fc2", hidden),), inner),
            ]
        return tuple(found)


def read_shape(config: Config) -> JinaShape:
    """The shape in config.json; raises ModelRejected for what is not computed exactly."""
    config.require("hidden_act", "gelu")
    config.require("position_embedding_type", "rotary")
    config.require("use_rms_norm", False)
    hidden, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if hidden % num_heads:
        config.reject("hidden_size", f"a multiple of num_attention_heads ({num_heads})")
    has_tasks = bool(config.strings("lora_adaptations", ()))
    has_newer_keys = config.section("rope_parameters").get("rope_theta") is not None
    return JinaShape(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=config.integer("num_hidden_layers"),
        num_heads=num_heads,
        intermediate_size=config.integer("intermediate_size"),
        max_positions=config.integer("max_position_embeddings"),
        num_types=config.integer("type_vocab_size", 1),
        norm_eps=config.number("layer_norm_eps", 1e-5),
        theta=read_theta(config) if has_newer_keys else config.number("rotary_emb_base"),
        lookup_rank=config.integer("lora_rank") + 1 if has_tasks else 0,
    )


def is_unused(name: str) -> bool:
    """The pooler with its updates, and the head of the masked language model."""
    return name.startswith(("pooler.", "lm_head."))


class Backbone:
    """Token ids of a packed batch in, token states out."""

    def __init__(
        self, shape: JinaShape, checkpoint: Checkpoint, *, low_rank: LowRankTables, dtype: torch.dtype
    ) -> None:
        hidden = shape.hidden_size
        self.words = checkpoint.take(f"{WORDS}.weight", (shape.vocab_size, hidden), dtype)
        self.types = checkpoint.take(f"{TYPES}.weight", (shape.num_types, hidden))
        self.norm = _norm(shape, "emb_ln", checkpoint, dtype)
        rotary = Rotary(
            theta=shape.theta, size=shape.head_size, positions=shape.max_positions, device=checkpoint.device
        )
        linears = {linear.name: linear for linear in shape.linears}
        rank = shape.lookup_rank
        self.update = LoraLookup(linears[WORDS], low_rank=low_rank, max_rank=rank) if rank else None
        self.layers = [
            _Layer(shape, i, linears, checkpoint, rotary=rotary, low_rank=low_rank, dtype=dtype)
            for i in range(shape.num_layers)
        ]

    def __call__(self, batch: Batch) -> TokenStates:
        """See server/backbones/shape.py."""
        kinds = batch.types if len(self.types) > 1 else torch.zeros_like(batch.types)
        added = take_rows(self.types, kinds)
        if self.update is not None:
            added = added + self.update(batch.token_ids, batch.segments)
        words = take_rows(self.words, batch.token_ids)
        states = self.norm(words, added.to(words.dtype))
        for layer in self.layers[:-1]:
            states = layer(states, batch)
        states = self.layers[-1](states, batch, is_last=True)
        return TokenStates(states, batch.state_offsets)


class _Layer:
    """Attention and feed-forward, each followed by residual + LayerNorm."""

    def __init__(
        self, shape: JinaShape, index: int, linears: dict[str, FusedLinear], checkpoint: Checkpoint, *,
        rotary: Rotary, low_rank: LowRankTables, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        name = f"encoder.layers.{index}"

        def linear(part: str, activation: str = "none") -> LoraLinear:
            return LoraLinear(
                linears[f"{name}.{part}"], checkpoint, low_rank=low_rank, dtype=dtype, is_biased=True,
                activation=activation,
            )  # fmt: skip

        self.qkv, self.attention_out = linear("mixer.Wqkv"), linear("mixer.out_proj")
        self.up, self.down = linear("mlp.fc1", "gelu"), linear("mlp.fc2")
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
        return self.output_norm(self.down(self.up(states, segments), segments), states)


def _norm(shape: JinaShape, name: str, checkpoint: Checkpoint, dtype: torch.dtype) -> AddLayerNorm:
    return AddLayerNorm(name, checkpoint, size=shape.hidden_size, eps=shape.norm_eps, dtype=dtype)
