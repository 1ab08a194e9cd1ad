"""Small Triton kernels, good and bad, as an op's launcher would run them: what the compiler's checks are tried on."""

import torch
import triton
import triton.language as tl

from embedmux.kernels.aot import Call
from embedmux.kernels.launch import launch
from embedmux.kernels.library import Op

BLOCK, DEPTH = 64, 32


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def product_kernel(  # type: ignore[no-untyped-def]
    x, y, out, rows, width: tl.constexpr, precision: tl.constexpr, block: tl.constexpr, depth: tl.constexpr
):
    row = (tl.program_id(0) * block + tl.arange(0, block))[:, None]
    column = (tl.program_id(1) * block + tl.arange(0, block))[:, None]
    step = tl.arange(0, depth)[None, :]
    total = tl.zeros((block, block), tl.float32)
    for start in range(0, width, depth):
        left = tl.load(x + row * width + start + step, mask=row < rows, other=0.0)
        right = tl.load(y + column * width + start + step)
        total = tl.dot(left, right.T, total, input_precision=precision)
    tl.store(out + row * width + column.T, total.to(out.dtype.element_ty), mask=row < rows)


@triton.jit  # type: ignore[untyped-decorator]
def sums_kernel(x, out, size: tl.constexpr):  # type: ignore[no-untyped-def]
    values = tl.load(x + tl.arange(0, size))
    tl.store(out + tl.arange(0, size), tl.cumsum(values, 0) * values)


def product(x: torch.Tensor, y: torch.Tensor, precision: str = "tf32x3") -> torch.Tensor:
    """x yᵀ for x [T, K] and y [K, K]."""
    out = torch.empty_like(x)
    grid = (triton.cdiv(x.shape[0], BLOCK), x.shape[1] // BLOCK)
    launch(product_kernel, grid, x, y, out, x.shape[0], x.shape[1], precision, BLOCK, DEPTH, num_warps=8)
    return out


def starved(x: torch.Tensor) -> torch.Tensor:
    """Far more live values than registers."""
    out = torch.empty_like(x)
    launch(sums_kernel, (1,), x, out, x.numel(), num_warps=1, maxnreg=32)
    return out


def greedy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """More shared memory than any part has."""
    out = torch.empty_like(x)
    launch(product_kernel, (1, 1), x, y, out, x.shape[0], 1024, "tf32", 128, 128, num_warps=8, num_stages=6)
    return out


def call(launcher: object, name: str, *arguments: object) -> Call:
    """A call as if ``launcher`` were the Triton side of an op."""
    op = Op(f"sample_{name}", lambda *_: None, has_triton=True)
    op.__dict__["triton"] = launcher
    return Call(op, name, arguments)


def samples() -> dict[str, Call]:
    """By what is to be said of them."""
    kinds = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    meta = {name: torch.empty(100, 256, dtype=dtype, device="meta") for name, dtype in kinds.items()}
    square = {name: torch.empty(256, 256, dtype=dtype, device="meta") for name, dtype in kinds.items()}
    found = {name: call(product, name, meta[name], square[name]) for name in kinds}
    found["plain_cores"] = call(product, "plain_cores", meta["f32"], square["f32"], "ieee")
    found["starved"] = call(starved, "starved", torch.empty(4096, device="meta"))
    found["greedy"] = call(greedy, "greedy", meta["bf16"], square["bf16"])
    return found
