"""What NVIDIA's parts offer: limits that decide occupancy, and the rates that a roofline is made of.

Limits by compute capability: CUDA programming guide, "Technical specifications per compute capability". Rates: the
makers' data sheets, dense (without sparsity), at boost clock, which a part reaches for moments only: a time computed
from them is a floor, not a forecast.
"""

from dataclasses import dataclass

WARP_SIZE = 32
KIB = 1024
REGISTERS = 64 * KIB  # 32-bit registers of one multiprocessor, on every part here
SCHEDULERS = 4  # each owns a quarter of the registers
REGISTER_UNIT = 256  # registers are handed out to a warp in these
SHARED_UNIT = 128
SHARED_RESERVED = KIB  # of every block, for the system
MAX_TENSOR_MEMORY = 512  # columns, sm_100


@dataclass(frozen=True, slots=True)
class Limits:
    """One multiprocessor: resident warps and blocks, shared memory in bytes."""

    warps: int
    blocks: int
    shared: int
    shared_per_block: int


LIMITS = {
    80: Limits(64, 32, 164 * KIB, 163 * KIB),
    86: Limits(48, 16, 100 * KIB, 99 * KIB),
    89: Limits(48, 24, 100 * KIB, 99 * KIB),
    90: Limits(64, 32, 228 * KIB, 227 * KIB),
    100: Limits(64, 32, 228 * KIB, 227 * KIB),
    120: Limits(48, 24, 100 * KIB, 99 * KIB),
}
TARGETS = tuple(LIMITS)


def resident_blocks(capability: int, *, registers: int, warps: int, shared: int) -> int:
    """How many blocks of a kernel one multiprocessor holds at once; 0 where a block does not fit.

    registers per thread, warps per block, shared bytes per block without the system's share.
    """
    limits = LIMITS[capability]
    if shared > limits.shared_per_block:
        return 0
    per_warp = _round_up(max(registers, 1) * WARP_SIZE, REGISTER_UNIT)
    by_registers = SCHEDULERS * (REGISTERS // SCHEDULERS // per_warp) // warps
    by_shared = limits.shared // _round_up(shared + SHARED_RESERVED, SHARED_UNIT)
    return min(by_registers, by_shared, limits.warps // warps, limits.blocks)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


@dataclass(frozen=True, slots=True)
class Gpu:
    """One part. Rates in operations a second (a multiply and an add are two), memory in bytes a second.

    ``tensor`` are the rates of the tensor cores by the operands' type with float32 (int32) sums.
    """

    name: str
    capability: int
    multiprocessors: int
    memory: float
    vector: float
    tensor: dict[str, float]

    def rate(self, dot: str) -> float:
        """Operations a second for dots of this kind; "" is arithmetic without tensor cores."""
        if dot == "f32:tf32x3":
            return self.tensor["tf32"] / 3  # three products for each
        return self.tensor.get(dot.replace("f32:tf32", "tf32"), self.vector)


def _rates(bfloat16: float, tf32: float, int8: float) -> dict[str, float]:
    return {"bf16": bfloat16 * 1e12, "f16": bfloat16 * 1e12, "tf32": tf32 * 1e12, "i8": int8 * 1e12}


GPUS = (
    Gpu("A100 80GB SXM", 80, 108, 2039e9, 19.5e12, _rates(312, 156, 624)),
    Gpu("H100 SXM", 90, 132, 3350e9, 66.9e12, _rates(989.4, 494.7, 1978.9)),
    Gpu("L4", 89, 58, 300e9, 30.3e12, _rates(121, 60.5, 242.5)),
    Gpu("RTX 4090", 89, 128, 1008e9, 82.6e12, _rates(165.2, 82.6, 660.6)),
)
