"""What the searches on the GPU share: a hit as one int64 key, and the merge of what many programs found.

A key's order is the contract's: the score's bits as an ordered integer above, the row's complement below, so that of
equal scores the lower row is greater. Keys are unique: results do not depend on how rows are dealt to programs.
"""

import triton
import triton.language as tl

MAX_FUSED = 32  # hits that fit into registers; for more, scores are written in slabs and sorted
MAX_PROGRAMS = 256  # for one tile of queries: enough for every part, few enough for one block to merge
SLAB_BYTES = 256 << 20
LOWEST = tl.constexpr(-(2**63) + 1)  # below every key
ROWS = tl.constexpr(2**32 - 1)


@triton.jit
def flip_below_zero(bits):  # type: ignore[no-untyped-def]
    """float32 bits <-> int32 of the same order; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit(do_not_specialize=["count", "k"])  # type: ignore[untyped-decorator]
def merge_kernel(found, scores, ids, count, k, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """The k greatest of found [Q, count], from the greatest down, taken apart into scores and ids."""
    query = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, block)
    keys = tl.load(found + query * count + place, mask=place < count, other=LOWEST)
    for rank in range(k):
        greatest = tl.max(keys, axis=0)
        keys = tl.where(keys == greatest, LOWEST, keys)
        order = (greatest >> 32).to(tl.int32)
        tl.store(scores + query * k + rank, flip_below_zero(order).to(tl.float32, bitcast=True))
        tl.store(ids + query * k + rank, -(greatest & ROWS) + ROWS)
