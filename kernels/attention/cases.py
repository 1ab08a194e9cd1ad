"""Shapes of attention that tests and benchmarks walk: odd lengths, grouped heads, windows, views of one projection."""

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch

# q, k, v, offsets, causal, window, scale; then four arguments of prefixes, num_keys and asked, where a case has them
Arguments = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """lengths holds the tokens of each sequence; fused makes q, k and v views of one [T, (Hq + 2 Hkv) D] matrix.

    prefixes holds the tokens of each shared prefix and prefix_of each sequence's; both empty: no prefixes. num_keys
    holds how many tokens of each sequence are keys; empty: all. asked holds the row wanted of each sequence, counted
    within it; empty: all rows. The others are undefined, so such a case is compiled but not compared.
    """

    name: str
    dtype: torch.dtype
    lengths: tuple[int, ...]
    heads: int
    key_heads: int
    depth: int
    causal: bool = False
    window: int = -1
    fused: bool = True
    prefixes: tuple[int, ...] = ()
    prefix_of: tuple[int, ...] = ()
    num_keys: tuple[int, ...] = ()
    asked: tuple[int, ...] = ()

    @property
    def flops(self) -> int:
        """Multiplications and additions of both products, as if nothing were masked."""
        before = [self.prefixes[prefix] if prefix >= 0 else 0 for prefix in self.prefix_of] or [0] * len(self.lengths)
        pairs = sum(length * (length + prefix) for length, prefix in zip(self.lengths, before, strict=True))
        return 4 * pairs * self.heads * self.depth


def make_inputs(case: Case, seed: int) -> Arguments:
    """Fresh normal q, k and v; scores then have a variance near one."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = _projections(case, sum(case.lengths), (case.heads, case.key_heads, case.key_heads), generator)
    base = q, k, v, _offsets(case.lengths), case.causal, case.window, case.depth**-0.5
    more: list[torch.Tensor | None] = [None] * 6
    if case.prefix_of:
        more[:2] = _projections(case, sum(case.prefixes), (case.key_heads, case.key_heads), generator)
        more[2:4] = _offsets(case.prefixes), torch.tensor(case.prefix_of, dtype=torch.int32)
    if case.num_keys:
        more[4] = torch.tensor(case.num_keys, dtype=torch.int32)
    if case.asked:
        more[5] = base[3][:-1] + torch.tensor(case.asked)
    while more and more[-1] is None:
        more.pop()
    return *base, *more


def _projections(case: Case, rows: int, heads: tuple[int, ...], generator: torch.Generator) -> list[torch.Tensor]:
    if not case.fused:
        return [torch.randn(rows, count, case.depth, generator=generator).to(case.dtype) for count in heads]
    projection = torch.randn(rows, sum(heads), case.depth, generator=generator).to(case.dtype)
    return list(torch.split_with_sizes(projection, heads, 1))


def _offsets(lengths: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def cost(case: Case) -> tuple[int, int]:
    """(bytes, operations) at least: q, k, v and the result once, both products where the mask lets a pair through."""
    before = [case.prefixes[prefix] if prefix >= 0 else 0 for prefix in case.prefix_of] or [0] * len(case.lengths)
    pairs = 0
    for length, own, prefix in zip(case.lengths, case.num_keys or case.lengths, before, strict=True):
        seen = (prefix + min(own, i + 1 if case.causal else length) for i in range(length))
        widest = prefix + length if case.window < 0 else case.window * (1 if case.causal else 2) + 1
        pairs += sum(min(keys, widest) for keys in seen)
    values = sum(case.lengths) * 2 * (case.heads + case.key_heads) + sum(case.prefixes) * 2 * case.key_heads
    return values * case.depth * case.dtype.itemsize, 4 * pairs * case.heads * case.depth


def tolerance(case: Case) -> tuple[float, float]:
    """(rtol, atol) against float64."""
    if case.dtype == torch.bfloat16:
        # The result is rounded once (2^-9 of it); each weight is rounded to bfloat16 too, and these errors, up to
        # 2^-9 of a weight times a normal value of v, add up to at most a few 2^-9 where the row sees few keys.
        return 4.1e-3, 8e-3
    if case.dtype == torch.float16:
        return 5.2e-4, 1.2e-3  # the same with 2^-12
    # exp2 is good to 2e-7, sums of up to a thousand terms in float32 to about 1e-6 of values near one.
    return 2e-6, 3e-6


_SHAPES = (
    Case("one_token", torch.float32, (1,), 12, 12, 32, False, -1, True),
    Case("short", torch.float32, (5, 1, 20, 16, 17), 12, 12, 32, False, -1, True),
    Case("odd", torch.float32, (63, 100, 1, 31, 33), 3, 3, 32, False, -1, True),
    Case("empty_sequence", torch.float32, (0, 7, 0, 0, 9, 0), 2, 2, 32, False, -1, False),
    Case("two_blocks", torch.float32, (257, 256, 255), 2, 2, 32, False, -1, True),
    Case("long", torch.float32, (1000,), 1, 1, 64, False, -1, True),
    Case("grouped", torch.float32, (63, 100, 300), 8, 2, 64, False, -1, True),
    Case("one_key_head", torch.float32, (33, 290), 17, 1, 16, True, -1, False),
    Case("causal", torch.float32, (1, 63, 100, 520), 4, 2, 128, True, -1, True),
    Case("window", torch.float32, (1, 63, 100, 700), 2, 2, 64, False, 64, True),
    Case("window_zero", torch.float32, (1, 40), 2, 2, 32, False, 0, True),
    Case("causal_window", torch.float32, (300, 1, 513), 4, 1, 32, True, 100, True),
    Case("depth_24", torch.float32, (63, 100), 2, 2, 24, False, -1, False),
    Case("depth_40", torch.float32, (37, 290), 2, 1, 40, False, 5, True),
    Case("depth_80", torch.float32, (100, 31), 2, 2, 80, True, -1, True),
    Case("depth_256", torch.float32, (63, 270), 2, 1, 256, False, -1, True),
    Case("prefix", torch.float32, (20, 0, 33, 1, 290, 7), 4, 2, 32, False, -1, True, (17, 300, 0), (0, 0, 1, -1, 0, 2)),
    Case("prefix_causal", torch.float32, (40, 1, 250), 4, 1, 64, True, -1, False, (31, 256), (1, 0, 0)),
    Case("prefix_window", torch.float32, (90, 30, 5), 2, 2, 40, True, 50, True, (270, 9), (0, 1, -1)),
    Case("few_keys", torch.float32, (32, 0, 40, 300, 1), 2, 2, 32, num_keys=(9, 0, 40, 270, 1)),
    Case("few_keys_window", torch.float32, (32, 0, 40, 300, 1), 2, 2, 32, window=30, num_keys=(2, 0, 40, 270, 1)),
    Case("few_keys_prefix", torch.float32, (20, 33, 290), 4, 2, 64, True, -1, True, (17, 300), (0, -1, 1), (1, 30, 7)),
)


def _named(case: Case, dtype: torch.dtype) -> Case:
    return replace(case, name=f"{case.name}_{str(dtype).removeprefix('torch.')}", dtype=dtype)


_IN_FLOAT16 = ("short", "grouped", "causal", "window", "depth_40", "prefix", "few_keys")
CASES: tuple[Case, ...] = (
    *(_named(case, dtype) for dtype in (torch.float32, torch.bfloat16) for case in _SHAPES),
    *(_named(case, torch.float16) for case in _SHAPES if case.name in _IN_FLOAT16),
)

# Heads of a small encoder over a batch of queries, of passages, of mixed and of long texts; then a grouped decoder.
BENCHMARK_CASES: tuple[Case, ...] = tuple(
    Case(f"{name}_{str(dtype).removeprefix('torch.')}", dtype, lengths, heads, key_heads, depth, causal)
    for dtype in (torch.float32, torch.bfloat16)
    for name, lengths, heads, key_heads, depth, causal in (
        ("queries_T512", (8, 12, 16, 20, 8) * 8, 12, 12, 32, False),
        ("passages_T2048", (112,) * 18 + (32,), 12, 12, 32, False),
        ("mixed_T2048", (5, 256, 12, 112, 30, 200, 9, 64, 180, 156) * 2, 12, 12, 32, False),
        ("long_T8192", (8192,), 12, 12, 32, False),
        ("decoder_T2048", (128,) * 16, 16, 8, 128, True),
    )
)

# Small enough for Triton's interpreter: more than one tile and key block, more sequences than one look at the offsets.
TRITON_CASES: tuple[Case, ...] = tuple(
    _named(case, dtype)
    for case, dtype in (
        (Case("triton_odd", torch.float32, (33, 70, 1, 0, 16), 3, 3, 32), torch.float32),
        (Case("triton_many", torch.float32, (1, 0, 2) * 43, 1, 1, 16, False, -1, False), torch.float32),
        (Case("triton_grouped", torch.float32, (5, 150), 6, 3, 64), torch.bfloat16),
        (Case("triton_pack_8", torch.float32, (20, 9), 16, 1, 24, True), torch.float16),
        (Case("triton_group_of_3", torch.float32, (20, 66), 3, 1, 40, True, -1, False), torch.float32),
        (Case("triton_causal", torch.float32, (130, 7), 2, 2, 128, True), torch.bfloat16),
        (Case("triton_window", torch.float32, (200, 30), 2, 1, 80, False, 9), torch.float32),
        (Case("triton_causal_window", torch.float32, (150, 3), 2, 2, 16, True, 20), torch.float16),
        (Case("triton_depth_256", torch.float32, (40, 33), 1, 1, 256), torch.bfloat16),
        (Case("triton_prefix", torch.float32, (70, 5), 2, 2, 32, False, -1, True, (7, 66), (1, -1)), torch.float32),
        (Case("triton_prefix_causal", torch.float32, (3, 68), 4, 2, 64, True, -1, True, (64,), (0, 0)), torch.bfloat16),
        (Case("triton_prefix_window", torch.float32, (90, 4), 2, 1, 24, True, 30, False, (9,), (0, -1)), torch.float16),
        (Case("triton_few_keys", torch.float32, (32, 0, 70), 2, 1, 32, num_keys=(9, 0, 33)), torch.bfloat16),
        (
            Case("triton_few_keys_window", torch.float32, (32, 0, 70), 2, 1, 32, window=37, num_keys=(9, 0, 33)),
            torch.bfloat16,
        ),
        (Case("triton_few_keys_prefix", torch.float32, (5, 40), 2, 2, 16, False, -1, True, (7,), (0, -1), (2, 1)),
         torch.float32),
    )
)  # fmt: skip

# Production shapes, compiled ahead of time: heads x head size of encoders small and large, of decoders and rerankers.
COMPILE_CASES: tuple[Case, ...] = tuple(
    _named(Case(name, torch.float32, (128,) * 16, *shape), dtype)
    for name, shape in (
        ("compile_12x32", (12, 12, 32)),
        ("compile_12x64", (12, 12, 64)),
        ("compile_window", (12, 12, 64, False, 64)),
        ("compile_16x64", (16, 16, 64)),
        ("compile_16of8x128_causal", (16, 8, 128, True)),
        ("compile_32of8x128_causal", (32, 8, 128, True)),
        ("compile_32x80", (32, 32, 80, True)),
        ("compile_24x96", (24, 24, 96)),
        ("compile_8of1x256_window", (8, 1, 256, True, 512)),
        ("compile_12x32_prefix", (12, 12, 32, False, -1, True, (40,), (0,) * 16)),
        ("compile_16of8x128_prefix", (16, 8, 128, True, -1, True, (512,), (0,) * 16)),
        ("compile_12x32_few_keys", (12, 12, 32, False, -1, True, (), (), (20,) * 16)),
        ("compile_12x64_asked", (12, 12, 64, False, -1, True, (), (), (), (0,) * 16)),
        ("compile_16of8x128_asked", (16, 8, 128, True, -1, True, (512,), (0,) * 16, (), (127,) * 16)),
    )
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
)
