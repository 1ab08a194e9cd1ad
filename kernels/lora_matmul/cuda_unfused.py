"""The unfused pair, as other servers have it: shrink and expand-and-add beside cuBLAS. The fused kernel's yardstick.

Exact ranks and fixed orders hold here too, but cuBLAS chooses its kernel by the number of rows, so a row's bits depend
on the batch; and x Wᵀ is rounded to x's dtype before A x reaches it. Both keep it from being the op.
"""

import torch
import torch.nn.functional as F

from embedmux.kernels.lora_matmul import check
from embedmux.kernels.lora_matmul.cuda_matmul import multiply
from embedmux.kernels.lora_matmul.cuda_shrink import shrink_rows


def lora_matmul_unfused(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, arena: torch.Tensor, adapters: torch.Tensor,
    segment_offsets: torch.Tensor, segment_slots: torch.Tensor, slices: list[int], activation: str,
    packed: torch.Tensor | None, overrides: torch.Tensor | None = None, columns: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """As lora_matmul, with one rounding more: the product alone, u = A x, then everything else in the expand."""
    check(x, weight, bias, arena, adapters, segment_offsets, segment_slots, slices, activation, overrides, columns)
    product = F.linear(x, weight)
    u = shrink_rows(x, arena, adapters, segment_offsets, segment_slots)
    return multiply(
        x, weight, bias, arena, adapters, segment_offsets, segment_slots, slices, activation, overrides, columns,
        u, product,
    )  # fmt: skip
