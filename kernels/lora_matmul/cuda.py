"""lora_matmul on the GPU: one fused kernel, fed in one of two ways.

*Recompute* takes A x in every column tile anew, in one launch; *extend* takes it once, in a launch of its own before.
Recomputing costs products in proportion to the number of columns, extending a launch and one more reading of x. The
choice follows the arithmetic of ``model.py`` over usual batches and parts, never the batch at hand (law 1: bits depend
on the row and its adapter). *Modelled* time beyond the base product on an H100, bfloat16, 4 adapters of rank 16:

================================  ===================  ===================  ==========================
layer                             T = 512              T = 8192             chosen
================================  ===================  ===================  ==========================
K 768, N 3 · 768 (QKV)            10 % against 51 %    16 % against 15 %    recompute
K 768, N 768 (attention out)      6 % against 78 %     15 % against 37 %    recompute
K 768, N 3072 (up)                11 % against 41 %    16 % against 10 %    extend
K 768, N 2 · 3072 (gate, up)      27 % against 27 %    33 % against 10 %    extend
K 3072, N 768 (down)              9 % against 54 %     13 % against 30 %    recompute
================================  ===================  ===================  ==========================

Each cell: recompute against extend. Both beat the unfused pair beside cuBLAS (46 % to 163 %, ``cuda_unfused.py``). In
float32 a product costs six times as much and a byte twice, so every layer extends. Where the norm before the layer
gives u (``norm_shrink``), extend needs 2 % to 9 % everywhere.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.lora_matmul import GATED, check
from embedmux.kernels.lora_matmul.cuda_matmul import multiply
from embedmux.kernels.lora_matmul.cuda_shrink import shrink_rows
from embedmux.kernels.lora_matmul.model import recomputes


def lora_matmul(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, arena: torch.Tensor, adapters: torch.Tensor,
    segment_offsets: torch.Tensor, segment_slots: torch.Tensor, slices: list[int], activation: str,
    packed: torch.Tensor | None, overrides: torch.Tensor | None = None, columns: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The op on CUDA tensors; ``packed`` is a copy of weight there and is not needed."""
    check(x, weight, bias, arena, adapters, segment_offsets, segment_slots, slices, activation, overrides, columns)
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        checks.dtype_error("x", x, "torch.float32, torch.bfloat16 or torch.float16")
    u = None
    if not recomputes(x.size(1), tuple(slices), x.element_size(), activation in GATED):
        u = shrink_rows(x, arena, adapters, segment_offsets, segment_slots)
    return multiply(
        x, weight, bias, arena, adapters, segment_offsets, segment_slots, slices, activation, overrides, columns, u
    )
