"""BERT and XLM-RoBERTa on packed sequences: post-norm, learned absolute positions, bidirectional, exact GELU.

Weight names and shapes as in transformers' BertModel and XLMRobertaModel. XLM-R counts positions from padding_idx + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from embedmux.server.backbones.layers import (
    AddLayerNorm,
    Attention,
    LoraLinear,
    PostNormLayers,
    keep_pooled,
    split_heads,
)
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.checkpoint.folder import Config
from embedmux.server.packed import Batch, FusedLinear, LowRankTables, TokenStates

PREFIXES = ("bert.", "roberta.")


@dataclass(frozen=True, slots=True)
class BertShape:
    """Sizes of such an encoder; ``first_position`` is the row of the position table that a text's first token takes."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    num_positions: int
    num_types: int
    first_position: int
    norm_eps: float

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


def read_shape(config: Config) -> BertShape:
    """The shape in config.json; raises ModelRejected for what is not computed exactly."""
    config.require("hidden_act", "gelu")
    config.require("position_embedding_type", "absolute")
    config.require("is_decoder", False)
    config.require("add_cross_attention", False)
    hidden, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if hidden % num_heads:
        config.reject("hidden_size", f"a multiple of num_attention_heads ({num_heads})")
    is_roberta = config.string("model_type") != "bert"
    return BertShape(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=config.integer("num_hidden_layers"),
        num_heads=num_heads,
        intermediate_size=config.integer("intermediate_size"),
        num_positions=config.integer("max_position_embeddings"),
        num_types=config.integer("type_vocab_size", 1 if is_roberta else 2),
        first_position=config.integer("pad_token_id", 1, least=0) + 1 if is_roberta else 0,
        norm_eps=config.number("layer_norm_eps", 1e-12),
    )


def is_unused(name: str) -> bool:
    """The pooler of masked language models, their heads, and the positions' own indices."""
    return name.startswith(("pooler.", "cls.", "lm_head.")) or name in (
        "embeddings.position_ids", "embeddings.token_type_ids",
    )  # fmt: skip


class Backbone:
    """Token ids of a packed batch in, token states out."""

    def __init__(
        self, shape: BertShape, checkpoint: Checkpoint, *, low_rank: LowRankTables, dtype: torch.dtype
    ) -> None:
        hidden = shape.hidden_size
        self.words = checkpoint.take("embeddings.word_embeddings.weight", (shape.vocab_size, hidden), dtype)
        positions = checkpoint.take("embeddings.position_embeddings.weight", (shape.num_positions, hidden))
        types = checkpoint.take("embeddings.token_type_embeddings.weight", (shape.num_types, hidden))
        # A token's type is part of its position, summed before the one rounding: a table for each type.
        positions = positions[shape.first_position :]
        self.num_positions = len(positions)
        self.positions = torch.cat([(positions + kind).to(dtype) for kind in types[:2]])
        self.has_types = shape.num_types > 1

        def norm(name: str) -> AddLayerNorm:
            return AddLayerNorm(name, checkpoint, size=hidden, eps=shape.norm_eps, dtype=dtype)

        self.norm = norm("embeddings.LayerNorm")
        linears = {linear.name: linear for linear in shape.linears}
        self.layers: list[_Layer] = []
        for i in range(shape.num_layers):
            qkv, attention_out, up, down = (
                LoraLinear(
                    linears[name], checkpoint, low_rank=low_rank, dtype=dtype, is_biased=True, activation=activation
                )
                for name, activation in _linear_names(i)
            )
            norms = [norm(name) for name in _norm_names(i)]
            self.layers.append(_Layer(shape, i, (qkv, attention_out, up, down), norms))
        self.whole_layers = PostNormLayers(
            [linear for layer in self.layers for linear in layer.linears],
            [norm for layer in self.layers for norm in (layer.attention_norm, layer.output_norm)],
            num_heads=shape.num_heads, scale=shape.head_size**-0.5,
        )  # fmt: skip

    def __call__(self, batch: Batch) -> TokenStates:
        """See server/backbones/shape.py."""
        places = batch.positions + batch.types * self.num_positions if self.has_types else batch.positions
        states: torch.Tensor = torch.ops.embedmux.embed_norm(
            self.words, batch.token_ids, self.positions, places, self.norm.weight, self.norm.bias, self.norm.eps
        )
        num_whole = 0 if batch.num_keys is not None else len(self.layers) - (batch.pooled is not None)
        if num_whole:
            states = self.whole_layers(states, batch, num_whole)
        for layer in self.layers[num_whole:]:
            states = layer(states, batch, is_last=layer is self.layers[-1])
        return TokenStates(states, batch.state_offsets)


class _Layer:
    """Attention and feed-forward, each followed by residual + LayerNorm, op by op."""

    def __init__(
        self, shape: BertShape, index: int, linears: tuple[LoraLinear, ...], norms: list[AddLayerNorm]
    ) -> None:
        self.linears = linears
        self.qkv, self.attention_out, self.up, self.down = linears
        self.attention_norm, self.output_norm = norms
        self.heads = {"num_heads": shape.num_heads, "num_kv_heads": shape.num_heads, "head_size": shape.head_size}
        self.attend = Attention(index, causal=False, window=-1, scale=shape.head_size**-0.5)

    def __call__(self, states: torch.Tensor, batch: Batch, *, is_last: bool = False) -> torch.Tensor:
        """states [T, hidden] -> [T, hidden], of the pooled rows alone in the last layer."""
        segments = batch.segments
        context = self.attend(*split_heads(self.qkv(states, segments), **self.heads), batch, is_last=is_last)
        if is_last and batch.pooled is not None:
            context, states = keep_pooled(batch.pooled, context, states)
            segments = batch.pooled.segments
        states = self.attention_norm(self.attention_out(context, segments), states)
        return self.output_norm(self.down(self.up(states, segments), segments), states)


def _linear_names(layer: int) -> list[tuple[str, str]]:
    """(fused linear, its activation) in the order of the forward pass."""
    prefix = f"encoder.layer.{layer}"
    return [
        (f"{prefix}.attention.self.qkv", "none"), (f"{prefix}.attention.output.dense", "none"),
        (f"{prefix}.intermediate.dense", "gelu"), (f"{prefix}.output.dense", "none"),
    ]  # fmt: skip


def _norm_names(layer: int) -> list[str]:
    return [f"encoder.layer.{layer}.attention.output.LayerNorm", f"encoder.layer.{layer}.output.LayerNorm"]
