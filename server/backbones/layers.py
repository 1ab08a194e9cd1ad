"""Layers shared by the backbones: thin owners of weights around the ops."""

import torch

from embedmux.kernels import ops
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.records import Batch, FusedLinear, LowRankTables


class LoraLinear:
    """One fused linear with its adapters: y = activation(x Wᵀ + b + per segment B(A x)).

    The adapters' factors live in one flat tensor; a batch changes only two small integer arrays.
    """

    def __init__(
        self, linear: FusedLinear, checkpoint: Checkpoint, *, low_rank: LowRankTables, dtype: torch.dtype
    ) -> None:
        widths = [width for _, width in linear.slices]
        weights = [checkpoint.take(f"{name}.weight", (width, linear.in_features)) for name, width in linear.slices]
        biases = [checkpoint.take(f"{name}.bias", (width,)) for name, width in linear.slices]
        self.weight = torch.cat(weights).to(dtype)
        self.bias = torch.cat(biases).to(dtype)
        # The GPU's kernels read the plain weight; on the CPU a layout of its own is faster.
        self.packed = ops.pack_weight(self.weight) if self.weight.device.type == "cpu" else None
        self.widths = widths
        self.low_rank = low_rank.data
        self.adapters = low_rank.tables[linear.name]

    def __call__(self, x: torch.Tensor, batch: Batch, activation: str = "none") -> torch.Tensor:
        """x [T, in] -> [T, out], same dtype."""
        found: torch.Tensor = torch.ops.embedmux.lora_matmul(
            x, self.weight, self.bias, self.low_rank, self.adapters,
            batch.segment_offsets, batch.segment_slots, self.widths, activation, self.packed,
        )  # fmt: skip
        return found


class AddLayerNorm:
    """LayerNorm(x + residual), statistics in float32."""

    def __init__(self, name: str, checkpoint: Checkpoint, *, size: int, eps: float, dtype: torch.dtype) -> None:
        self.weight = checkpoint.take(f"{name}.weight", (size,)).to(dtype)
        self.bias = checkpoint.take(f"{name}.bias", (size,)).to(dtype)
        self.eps = eps

    def __call__(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """x and residual [T, size] -> [T, size], same dtype."""
        found: torch.Tensor = torch.ops.embedmux.add_layer_norm(x, residual, self.weight, self.bias, self.eps)
        return found
