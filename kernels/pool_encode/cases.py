"""Shapes of pool_encode that tests and benchmarks walk."""

from dataclasses import dataclass, replace
from itertools import accumulate, product

import torch

Arguments = tuple[
    torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, float, str, torch.Tensor,
    torch.Tensor | None, str, int, bool, str, torch.Tensor | None,
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """lengths holds the tokens of each sequence, sequences those to encode (None: all)."""

    name: str
    dtype: torch.dtype
    lengths: tuple[int, ...]
    width: int
    dimensions: int
    norm: str = "none"
    pooling: str = "mean"
    encoding: str = "float32"
    residual: bool = False
    weights: bool = True
    weight_dtype: torch.dtype = torch.float32
    sequences: tuple[int, ...] | None = None
    normalize: bool = True

    @property
    def bytes(self) -> int:
        """Read once; the result is small beside it."""
        rows = sum(self.lengths) if self.pooling == "mean" else len(self.lengths)
        columns = self.dimensions if self.norm == "none" else self.width
        return rows * columns * self.dtype.itemsize * (2 if self.residual else 1)


def make_inputs(case: Case, seed: int) -> Arguments:
    """Fresh normal states; ranges that leave some values outside, one dimension with an empty range."""
    generator = torch.Generator().manual_seed(seed)
    hidden, residual = (
        torch.randn(sum(case.lengths), case.width, generator=generator).to(case.dtype) for _ in range(2)
    )
    weight, bias = (torch.randn(case.width, generator=generator).to(case.weight_dtype) for _ in range(2))
    spread = 1.5 / case.dimensions**0.5 if case.normalize else 1.5
    ranges = torch.stack((-spread - 0.1 * torch.rand(case.dimensions, generator=generator),
                          torch.full((case.dimensions,), 1.1 * spread)))  # fmt: skip
    ranges[:, case.dimensions // 2] = 0.01
    return (
        hidden,
        residual if case.residual else None,
        weight if case.weights and case.norm != "none" else None,
        bias if case.weights and case.norm == "layer" else None,
        1e-5,
        case.norm,
        torch.tensor([0, *accumulate(case.lengths)], dtype=torch.int32),
        None if case.sequences is None else torch.tensor(case.sequences, dtype=torch.int32),
        case.pooling,
        case.dimensions,
        case.normalize,
        case.encoding,
        ranges if case.encoding in ("int8", "uint8") else None,
    )


def tolerance(case: Case) -> tuple[float, float]:
    """(rtol, atol) against float64. A value within float32's reach of the edge of a bucket may fall to the other side,
    one code away; the floats carry float32's error and one rounding. The seeds keep signs away from zero.
    """
    return {
        "float32": (2e-6, 2e-6),
        "float16": (4.9e-4, 2e-6),
        "bfloat16": (4e-3, 2e-6),
        "int8": (0.0, 1.0),
        "uint8": (0.0, 1.0),
    }.get(case.encoding, (0.0, 0.0))


ENCODINGS = ("float32", "float16", "bfloat16", "int8", "uint8", "binary", "ubinary")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LENGTHS = (1, 21, 7, 34)
_SHAPES = (
    Case("one_value", torch.float32, (1,), 1, 1),
    Case("mean", torch.float32, _LENGTHS, 100, 100),
    Case("mean_cut", torch.float32, (5, 1, 130), 384, 257, encoding="int8", sequences=(2, 0)),
    Case("raw_residual", torch.float32, _LENGTHS, 63, 31, residual=True, normalize=False),
    Case("cls", torch.float32, _LENGTHS, 100, 77, pooling="cls", encoding="uint8"),
    Case("last_float16", torch.float32, _LENGTHS, 40, 40, pooling="last", encoding="float16"),
    Case("layer_mean", torch.float32, _LENGTHS, 100, 63, norm="layer", residual=True, encoding="ubinary"),
    Case("layer_cls", torch.float32, _LENGTHS, 100, 100, norm="layer", pooling="cls", encoding="bfloat16"),
    Case("layer_plain", torch.float32, _LENGTHS, 65, 65, norm="layer", weights=False, normalize=False),
    Case("rms_mean", torch.float32, (3, 40), 384, 256, norm="rms", encoding="binary"),
    Case("rms_last", torch.float32, _LENGTHS, 130, 129, norm="rms", pooling="last", residual=True),
    Case("no_sequences", torch.float32, (), 16, 16),
    Case("none_chosen", torch.float32, (2, 3), 16, 9, sequences=(), encoding="int8"),
    Case("one_twice", torch.float32, (2, 3), 16, 9, sequences=(1, 1)),
)
CASES: tuple[Case, ...] = (
    *(
        replace(case, name=f"{case.name}_{str(dtype).removeprefix('torch.')}", dtype=dtype)
        for dtype, shapes in ((torch.float32, _SHAPES), (torch.bfloat16, _SHAPES[1::2]), (torch.float16, _SHAPES[2::2]))
        for case in shapes
    ),
    Case("bfloat16_weights", torch.bfloat16, (3, 9), 48, 40, norm="layer", weight_dtype=torch.bfloat16),
    Case("many", torch.bfloat16, tuple(1 + i % 9 for i in range(50)), 40, 33, encoding="int8"),
)
BENCHMARK_CASES: tuple[Case, ...] = tuple(
    Case(f"T2048_H{width}_{encoding}_{norm}", torch.bfloat16, (32,) * 64, width, width, norm, encoding=encoding)
    for width, encoding, norm in product((384, 1024), ("float32", "int8", "ubinary"), ("none", "layer"))
)
COMPILE_CASES: tuple[Case, ...] = tuple(
    Case(f"H{width}_{encoding}_{norm}_{pooling}", dtype, (32,) * 4, width, dimensions, norm, pooling, encoding)
    for dtype, width, dimensions, norm, pooling, encoding in (
        (torch.bfloat16, 384, 384, "none", "mean", "float32"),
        (torch.bfloat16, 384, 128, "none", "mean", "int8"),
        (torch.float16, 768, 768, "none", "cls", "ubinary"),
        (torch.float32, 1024, 1024, "layer", "mean", "uint8"),
        (torch.bfloat16, 1024, 256, "rms", "last", "binary"),
        (torch.bfloat16, 2560, 2560, "rms", "mean", "float16"),
        (torch.bfloat16, 4096, 4096, "rms", "last", "int8"),
        (torch.float32, 8192, 8192, "layer", "mean", "int8"),
        (torch.bfloat16, 8192, 8192, "none", "mean", "bfloat16"),
    )
)
