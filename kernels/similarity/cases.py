"""Shapes of similarity that tests and benchmarks walk, and the vectors that similarity_topk and rescore take too."""

from dataclasses import dataclass

import torch

Arguments = tuple[torch.Tensor, torch.Tensor, str, torch.Tensor | None, torch.Tensor | None]
FLOAT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Case:
    """``kind`` of the op, for "dot" with the dtype behind a colon. ``width`` counts dimensions, also of packed bits.

    is_scaled: with query_scale and query_offset, where the kind takes them. on_grid: values on a grid so coarse that
    float32 sums are exact in any order: equal scores are ties on every device.
    """

    name: str
    kind: str
    queries: int
    rows: int
    width: int
    is_scaled: bool = False
    on_grid: bool = False

    @property
    def op_kind(self) -> str:
        """The op's argument."""
        return self.kind.partition(":")[0]

    @property
    def pairs(self) -> int:
        """Scores computed."""
        return self.queries * self.rows


def make_inputs(case: Case, seed: int) -> Arguments:
    """Fresh vectors, scales and offsets."""
    generator = torch.Generator().manual_seed(seed)

    def floats(count: int) -> torch.Tensor:
        values = torch.randn(count, case.width, generator=generator)
        return (values * 8).round().clamp(-32, 32) / 8 if case.on_grid else values

    def codes(count: int, dtype: torch.dtype, width: int) -> torch.Tensor:
        limits = torch.iinfo(dtype)
        return torch.randint(limits.min, limits.max + 1, (count, width), dtype=dtype, generator=generator)

    sizes = (case.queries, case.rows)
    kind = case.op_kind
    scale = offset = None
    packed = (case.width + 7) // 8
    if kind == "dot":
        queries, rows = (floats(count).to(FLOAT_DTYPES[case.kind.removeprefix("dot:")]) for count in sizes)
    elif kind == "int8":
        queries, rows = (codes(count, torch.int8, case.width) for count in sizes)
    elif kind == "hamming":
        queries, rows = (codes(count, torch.uint8, packed) for count in sizes)
    elif kind == "float_binary":
        queries, rows = floats(case.queries), codes(case.rows, torch.uint8, packed)
    else:
        queries, rows = floats(case.queries), codes(case.rows, torch.int8, case.width)
    if case.is_scaled:
        scale = torch.rand(case.queries, generator=generator) * 1e-3 + 1e-4 if kind == "int8" else None
        offset = torch.randn(case.queries, generator=generator)
        offset = (offset * 8).round() / 8 if case.on_grid and kind == "float_int8" else offset
    return queries, rows, kind, scale, offset


def _stored(case: Case) -> tuple[int, int]:
    """Bytes of a query and of a row."""
    kind = case.op_kind
    packed, size = (case.width + 7) // 8, FLOAT_DTYPES[case.kind[4:]].itemsize if kind == "dot" else 1
    query = {"hamming": packed, "float_binary": 4 * case.width, "float_int8": 4 * case.width}.get(
        kind, size * case.width
    )
    return query, packed if kind in ("hamming", "float_binary") else size * case.width


def vector_cost(case: Case) -> tuple[int, int]:
    """(bytes, operations) of reading all vectors once and scoring every pair, without what becomes of the scores.

    A population count of four bytes is told as an operation, as a processor has it.
    """
    query, row = _stored(case)
    operations = 3 * -(-row // 4) if case.op_kind == "hamming" else 2 * case.width
    return case.queries * query + case.rows * row, case.pairs * operations


def tile_cost(case: Case) -> tuple[int, int]:
    """As the Triton kernels do it: tiles filled up, and float queries in three parts against codes."""
    bytes_, operations = vector_cost(case)
    if case.op_kind == "hamming":
        return bytes_, operations // 3 * 17  # the count by arithmetic
    rows, queries, parts = (256, 16, 3) if case.op_kind in ("float_int8", "float_binary") else (128, 32, 1)
    padded = -(-case.rows // rows) * rows * -(-case.queries // queries) * queries
    depth = -(-case.width // 256) * 256 if case.op_kind == "float_binary" else case.width
    return bytes_, 2 * padded * depth * parts


def cost(case: Case) -> tuple[int, int]:
    """(bytes, operations) at least."""
    bytes_, operations = vector_cost(case)
    return bytes_ + 4 * case.pairs, operations


def kernel_cost(case: Case) -> tuple[int, int]:
    """(bytes, operations) of the Triton kernel."""
    bytes_, operations = tile_cost(case)
    return bytes_ + 4 * case.pairs, operations


def tolerance(case: Case) -> tuple[float, float]:
    """(rtol, atol) against float64."""
    if case.op_kind in ("int8", "hamming"):
        # The integer is exact; scale, product and sum are rounded once or twice.
        return (3e-7, 2e-5) if case.is_scaled else (1e-7, 0.0)
    # The rounding of sums that no order of addition can avoid; int8 values are up to 128 where normal ones are near 1.
    size = 64 if case.op_kind == "float_int8" else 1
    return 1e-6, 2e-7 * case.width * size


def gpu_tolerance(case: Case) -> tuple[float, float]:
    """The same on a GPU: tensor cores cut partial sums where others round, and a query in three parts has many."""
    rtol, atol = tolerance(case)
    return rtol, atol * (2.5 if case.op_kind in ("float_int8", "float_binary") else 1)


KINDS = ("dot:float32", "dot:bfloat16", "dot:float16", "int8", "hamming", "float_binary", "float_int8")
_SIZES = ((1, 1, 1), (3, 63, 100), (65, 130, 384), (20, 33, 1027))
CASES: tuple[Case, ...] = (
    *(
        Case(f"{kind.replace(':', '_')}_{queries}x{rows}x{width}", kind, queries, rows, width)
        for kind in KINDS
        for queries, rows, width in _SIZES
    ),
    Case("no_rows", "dot:float32", 5, 0, 16),
    Case("no_queries", "hamming", 0, 5, 16),
    Case("int8_scaled", "int8", 33, 100, 384, is_scaled=True),
    Case("int8_scaled_odd", "int8", 3, 70, 77, is_scaled=True),
    Case("float_int8_offset", "float_int8", 17, 100, 100, is_scaled=True),
)
TRITON_CASES = tuple(case for case in CASES if case.pairs < 5000)
COMPILE_CASES: tuple[Case, ...] = tuple(
    Case(
        f"{kind.replace(':', '_')}_{queries}x{rows}x{width}", kind, queries, rows, width, kind in ("int8", "float_int8")
    )
    for kind in KINDS
    for queries, rows, width in ((1, 1_000_000, 384), (64, 200_000, 384), (64, 200_000, 1024))
)
BENCHMARK_CASES: tuple[Case, ...] = tuple(
    Case(f"{kind.replace(':', '_')}_{queries}x20000", kind, queries, 20_000, 384)
    for kind in KINDS
    for queries in (1, 64)
)
