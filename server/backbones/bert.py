"""BERT on packed sequences: post-norm, learned absolute positions, bidirectional attention, exact GELU.

Weight names and shapes as in transformers' BertModel; the pooler and the MLM head are not used for embeddings.
"""

from pathlib import Path

import torch

from embedmux.server.backbones.layers import AddLayerNorm, LoraLinear
from embedmux.server.backbones.spec import Spec
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.records import Batch, LowRankTables


def _is_unused(name: str) -> bool:
    return name.startswith(("pooler.", "cls.")) or name == "embeddings.position_ids"


class Bert:
    """The encoder: token ids of a packed batch in, last hidden states out."""

    def __init__(
        self, spec: Spec, folder: Path, *, low_rank: LowRankTables, dtype: torch.dtype, device: torch.device
    ) -> None:
        checkpoint = Checkpoint(folder, prefixes=("bert.",), ignored=_is_unused, device=device)
        hidden = spec.hidden_size
        self.spec = spec
        self.dtype = dtype
        self.words = checkpoint.take("embeddings.word_embeddings.weight", (spec.vocab_size, hidden)).to(dtype)
        positions = checkpoint.take("embeddings.position_embeddings.weight", (spec.max_positions, hidden))
        # Every text is segment 0, so its type embedding is part of the position's, summed before the one rounding.
        types = checkpoint.take("embeddings.token_type_embeddings.weight", (2, hidden))
        self.positions = (positions + types[0]).to(dtype)
        self.norm = self._norm("embeddings.LayerNorm", checkpoint)
        linears = {linear.name: linear for linear in spec.linears}
        self.layers = [
            BertLayer(
                [LoraLinear(linears[name], checkpoint, low_rank=low_rank, dtype=dtype) for name in _linear_names(i)],
                [self._norm(name, checkpoint) for name in _norm_names(i)],
                head_size=hidden // spec.num_heads,
            )
            for i in range(spec.num_layers)
        ]
        checkpoint.finish()
        self.digest = checkpoint.digest()

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Last hidden states [T, hidden] of a packed batch."""
        words = torch.nn.functional.embedding(batch.token_ids, self.words)
        states = self.norm(words, torch.nn.functional.embedding(batch.positions, self.positions))
        for layer in self.layers:
            states = layer(states, batch)
        return states

    def _norm(self, name: str, checkpoint: Checkpoint) -> AddLayerNorm:
        return AddLayerNorm(name, checkpoint, size=self.spec.hidden_size, eps=self.spec.norm_eps, dtype=self.dtype)


class BertLayer:
    """Attention and feed-forward, each followed by residual + LayerNorm."""

    def __init__(self, linears: list[LoraLinear], norms: list[AddLayerNorm], *, head_size: int) -> None:
        self.qkv, self.attention_out, self.up, self.down = linears
        self.attention_norm, self.output_norm = norms
        self.head_size = head_size
        self.scale = head_size**-0.5

    def __call__(self, states: torch.Tensor, batch: Batch) -> torch.Tensor:
        """states [T, hidden] -> [T, hidden]."""
        num_tokens = states.shape[0]
        query, key, value = self.qkv(states, batch).view(num_tokens, 3, -1, self.head_size).unbind(1)
        context = torch.ops.embedmux.attention(query, key, value, batch.offsets, False, -1, self.scale)
        states = self.attention_norm(self.attention_out(context.view(num_tokens, -1), batch), states)
        return self.output_norm(self.down(self.up(states, batch, "gelu"), batch), states)


def _linear_names(layer: int) -> list[str]:
    prefix = f"encoder.layer.{layer}"
    return [
        f"{prefix}.attention.self.qkv", f"{prefix}.attention.output.dense",
        f"{prefix}.intermediate.dense", f"{prefix}.output.dense",
    ]  # fmt: skip


def _norm_names(layer: int) -> list[str]:
    return [f"encoder.layer.{layer}.attention.output.LayerNorm", f"encoder.layer.{layer}.output.LayerNorm"]
