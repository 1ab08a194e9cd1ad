"""gated_activation in Triton: a part of one row a program."""

import torch
import triton
import triton.language as tl

from embedmux.kernels.activation import check
from embedmux.kernels.launch import launch

BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def gated_kernel(x, out, x_stride, WIDTH: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    source = x + row * x_stride + column
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + WIDTH, mask=inside, other=0.0).to(tl.float32)
    if KIND == "geglu":
        gate = gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    else:
        logit = gate
        if KIND == "geglu_tanh":
            # (1 + tanh(u)) / 2 is the sigmoid of 2u.
            logit = 1.5957691216057308 * gate * (1.0 + 0.044715 * gate * gate)
        # Below -80 the result is 0 to float32's last place; held there, the exponential stays finite.
        gate = gate / (1.0 + tl.exp(-tl.maximum(logit, -80.0)))
    tl.store(out + row * WIDTH + column, (gate * up).to(out.dtype.element_ty), mask=inside)


def gated_activation(x: torch.Tensor, kind: str) -> torch.Tensor:
    """See the contract in ``kernels/activation/__init__.py``."""
    check(x, kind)
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, width = x.size(0), x.size(1) // 2
    out = x.new_empty(rows, width)
    block = min(BLOCK, max(128, triton.next_power_of_2(width)))
    launch(
        gated_kernel, (rows, triton.cdiv(width, block)), x, out, x.stride(0),
        WIDTH=width, KIND=kind, BLOCK=block, num_warps=max(1, block // 256),
    )  # fmt: skip
    return out
