"""What lora_matmul costs on a GPU by arithmetic, and the block sizes and design that follow. Nothing is measured.

A launch takes the longer of its multiplications and its memory traffic, each at a fixed share of the data sheet's peak,
plus what every launch costs. Operands that several tiles read are counted once (they fit in the second-level cache).
The four designs: the *base* product alone; *recompute* and *extend* as ``cuda_matmul.py`` describes them (with *norm*,
extend gets u from the norm before, without a launch or a reading of its own); and the *unfused* pair beside cuBLAS.
"""

from dataclasses import dataclass, replace
from functools import cache
from math import ceil, log

U_RANKS = 256  # columns of u per slice: the largest rank of the designs that keep u in memory
SHRINK_RANKS = 16  # ranks of every slice that the shrink takes in one pass over x
DESIGNS = ("base", "recompute", "extend", "norm", "unfused")


@dataclass(frozen=True, slots=True)
class Part:
    """A GPU: dense peak of half-width products with float32 sums and of tf32, in FLOP/s; memory in bytes/s."""

    name: str
    half: float
    tf32: float
    bandwidth: float


PARTS = (
    Part("A100", 312e12, 156e12, 2.04e12),
    Part("H100", 989e12, 494e12, 3.35e12),
    Part("L4", 121e12, 60e12, 0.30e12),
    Part("RTX 4090", 165e12, 82.6e12, 1.01e12),
)
COMPUTE_SHARE, BANDWIDTH_SHARE = 0.6, 0.85  # of the peak, as good kernels reach at these sizes
LAUNCH_S = 2e-6  # start and drain of a kernel in a captured graph


@dataclass(frozen=True, slots=True)
class Shape:
    """One call: T rows, K in, slices out; ``adapters`` different ones of one rank; itemsize 2 or 4."""

    rows: int
    inner: int
    slices: tuple[int, ...]
    rank: int
    adapters: int
    itemsize: int
    gated: bool = False

    @property
    def width(self) -> int:
        """Columns of the weight, N."""
        return sum(self.slices)


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs (of tensor cores, each as often as it is issued), bytes of memory traffic, and launches."""

    flops: float = 0.0
    bytes: float = 0.0
    launches: int = 0


def blocks(inner: int, slices: tuple[int, ...], itemsize: int, gated: bool) -> dict[str, int]:
    """Block sizes, warps and stages for a layer; no spills, and within the 99 KB of shared memory of sm_86, 89 and 120.

    Functions of the layer alone, so that a row is summed in one order in every batch. R0 and R1 are the chunks of rank
    for which the kernel has a loop; a gated piece has two of them side by side.
    """
    common = {"R0": 8, "R1": 16} if gated else {"R0": 16, "R1": 32}
    columns = sum(slices) if gated else max(slices)
    if columns < 64 or inner < 64:
        return {"BM": 16, "BN": 32, "BK": 32, **common, "num_warps": 4, "num_stages": 2}
    if itemsize == 4:
        return {"BM": 64, "BN": 64, "BK": 32, **common, "num_warps": 4, "num_stages": 3}
    if sum(slices) <= 1152:  # fewer columns leave fewer programs: halve the tiles instead of leaving the part idle
        return {"BM": 64, "BN": 128, "BK": 32, **common, "num_warps": 4, "num_stages": 4}
    return {"BM": 128, "BN": 128, "BK": 32, **common, "num_warps": 8, "num_stages": 4}


def cost(shape: Shape, design: str) -> Cost:
    """What one of DESIGNS does for a call."""
    block = blocks(shape.inner, shape.slices, shape.itemsize, shape.gated)
    size, out = shape.itemsize, shape.width // (2 if shape.gated else 1)
    product = 2.0 * shape.rows * shape.inner * shape.width
    operands = size * (shape.rows * shape.inner + shape.width * shape.inner + shape.rows * out)
    if design == "base":
        return Cost(product, operands, 1)

    # Chunks are computed whole, gated ones side by side; half-width B takes u twice, once for its low bits.
    stacked, twice = 2 if shape.gated else 1, 2 if size == 2 else 1
    factors = size * shape.adapters * shape.rank * (len(shape.slices) * shape.inner + shape.width)
    if design == "recompute":
        chunk = block["R0"] if shape.rank <= block["R0"] else block["R1"]
        ranks = stacked * chunk * ceil(shape.rank / chunk)
        tiles = shape.width / block["BN"]
        extra = 2.0 * shape.rows * ranks * (tiles * shape.inner + twice * shape.width)
        return Cost(product + extra, operands + factors, 1)
    pieces = 2 ** ceil(log(len(shape.slices), 2))
    shrunk = 2.0 * shape.rows * shape.inner * pieces * SHRINK_RANKS * ceil(shape.rank / SHRINK_RANKS)
    chunk = block["R0"] * ceil(shape.rank / block["R0"])
    expanded = 2.0 * shape.rows * stacked * chunk * twice * shape.width
    u, x = 4.0 * shape.rows * len(shape.slices) * shape.rank, size * shape.rows * shape.inner
    if design == "norm":
        return Cost(product + shrunk + expanded, operands + 2 * u + factors, 1)
    if design == "extend":
        return Cost(product + shrunk + expanded, operands + x + 2 * u + factors, 2)
    if design == "unfused":
        twice_read = 2 * size * shape.rows * shape.width  # the base product is written, and read by the expand
        return Cost(product + shrunk + expanded, operands + twice_read + x + 2 * u + factors, 3)
    raise ValueError(f"design must be one of {', '.join(DESIGNS)}, not {design!r}")


def seconds(shape: Shape, design: str, part: Part) -> float:
    """Modelled time of a call; the launches of a design beyond the base product's are limited by memory or by start."""
    found, base = cost(shape, design), cost(shape, "base")
    peak = COMPUTE_SHARE * (part.half if shape.itemsize == 2 else part.tf32 / 3)  # float32 takes three tf32 products
    bandwidth = BANDWIDTH_SHARE * part.bandwidth
    if design in ("base", "recompute", "norm"):
        return LAUNCH_S + max(found.flops / peak, found.bytes / bandwidth)
    main = max(base.flops / peak, base.bytes / bandwidth)
    beside = max((found.flops - base.flops) / peak, (found.bytes - base.bytes) / bandwidth)
    return found.launches * LAUNCH_S + main + beside


@cache
def recomputes(inner: int, slices: tuple[int, ...], itemsize: int, gated: bool) -> bool:
    """Whether one launch that recomputes u beats a shrink of its own and extend, over usual batches on all PARTS.

    It never looks at the batch at hand: a row's bits must not depend on its neighbours.
    """
    if itemsize == 4:  # three tf32 products for one: only the narrowest layers would gain, and there the loop spills
        return False
    ratio = 0.0
    for rows in (256, 1024, 4096, 16384):
        for rank in (8, 16, 32):
            shape = Shape(rows, inner, slices, rank, 4, itemsize, gated)
            ratio += sum(log(seconds(shape, "recompute", part) / seconds(shape, "extend", part)) for part in PARTS)
    return ratio < 0


def overheads(shape: Shape, part: Part) -> dict[str, float]:
    """Each design's time over the base product's, minus one."""
    base = seconds(replace(shape, rank=0), "base", part)
    return {design: seconds(shape, design, part) / base - 1 for design in DESIGNS[1:]}
