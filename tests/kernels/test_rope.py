"""What only rope promises: the numbers of transformers, a row alone, strided heads, refused positions and arguments."""

from typing import Any

import pytest
import torch
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as apply_partial
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from embedmux.kernels import ops
from embedmux.kernels.rope import reference
from embedmux.kernels.rope.cases import Case, make_inputs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
QWEN3 = Case("qwen3", torch.float32, 19, 4, 2, 128, 128, normed=True)
PARTIAL = Case("partial", torch.float32, 19, 3, 3, 64, 16)


def doubled(angles: torch.Tensor) -> torch.Tensor:
    """[T, R / 2] as transformers has it: [1, T, R] in float64."""
    return torch.cat((angles, angles), 1)[None].double()


def of_transformers(case: Case) -> tuple[torch.Tensor, ...]:
    q, k, positions, cos, sin, q_weight, k_weight, eps = make_inputs(case, seed=1)
    heads = []
    for x, weight in ((q.double(), q_weight), (k.double(), k_weight)):
        if weight is not None:
            norm = Qwen3RMSNorm(case.size, eps).double()
            norm.weight.data.copy_(weight)
            wide, square = norm.weight, x.pow(2).mean(2, keepdim=True)  # its forward goes through float32
            x = wide * (x * torch.rsqrt(square + norm.variance_epsilon))
        heads.append(x.transpose(0, 1)[None])
    apply = apply_rotary_pos_emb if case.rotated == case.size else apply_partial
    turned = apply(*heads, doubled(cos[positions]), doubled(sin[positions]))
    return tuple(x[0].transpose(0, 1).detach() for x in turned)


@pytest.mark.parametrize("case", (QWEN3, PARTIAL), ids=lambda case: case.name)
def test_numbers_are_those_of_transformers(isa: str, case: Case) -> None:
    arguments = make_inputs(case, seed=1)
    wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    for found, exact, expected in zip(
        ops.rope(*arguments), reference.rope(*wide), of_transformers(case), strict=True
    ):  # fmt: skip
        torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=4e-6)


@pytest.mark.skipif(not ops.HAS_EXTENSION, reason="the references leave their sums to torch")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normed", (False, True), ids=("plain", "normed"))
def test_row_has_the_same_bits_alone_strided_and_in_a_batch(isa: str, dtype: torch.dtype, normed: bool) -> None:
    case = Case("", dtype, 23, 5, 2, 50, 22, normed=normed)
    q, k, positions, *others = make_inputs(case, seed=2)
    batch = ops.rope(q, k, positions, *others)
    plain = ops.rope(q.contiguous(), k.transpose(1, 2).contiguous().transpose(1, 2), positions, *others)
    assert all(map(torch.equal, plain, batch))
    for row in range(23):
        one = slice(row, row + 1)
        alone = ops.rope(q[one], k[one], positions[one], *others)
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, batch, strict=True))


def test_only_one_of_q_and_k_may_have_a_norm(isa: str) -> None:
    arguments = list(make_inputs(QWEN3, seed=3))
    both = ops.rope(*arguments)
    arguments[6] = None
    q, k = ops.rope(*arguments)
    assert torch.equal(q, both[0])
    arguments[5] = None
    assert torch.equal(k, ops.rope(*arguments)[1])


def test_position_zero_turns_nothing_and_rest_is_copied(isa: str) -> None:
    for dtype in DTYPES:
        q, k, positions, *others = make_inputs(Case("", dtype, 6, 3, 1, 64, 16), seed=4)
        zero = ops.rope(q, k, torch.zeros_like(positions), *others)
        assert torch.equal(zero[0], q) and torch.equal(zero[1], k)
        turned = ops.rope(q, k, positions, *others)
        assert torch.equal(turned[0][..., 16:], q[..., 16:]) and torch.equal(turned[1][..., 16:], k[..., 16:])


@pytest.mark.parametrize("normed", (False, True), ids=("plain", "normed"))
def test_nan_stays_in_its_head(isa: str, normed: bool) -> None:
    q, k, *others = make_inputs(Case("", torch.float32, 5, 3, 2, 64, 32, normed=normed), seed=5)
    q, k = q.clone(), k.clone()
    q[2, 1, 7] = torch.nan
    k[4, 0, 63] = torch.nan
    for out, place in zip(ops.rope(q, k, *others), ((2, 1), (4, 0)), strict=True):
        nan = out.isnan()
        assert nan[place].all() if normed else nan[place].any()
        nan[place] = False
        assert not nan.any()


def test_cuda_kernel_reads_nothing_outside_for_a_position_out_of_range() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, positions, cos, sin, *others = [
        value.to(device) if isinstance(value, torch.Tensor) else value for value in make_inputs(PARTIAL, seed=6)
    ]
    guarded = []
    for angles in (cos, sin):
        whole = torch.full((3 * cos.size(0), cos.size(1)), torch.nan, device=device)
        guarded.append(whole[cos.size(0) : 2 * cos.size(0)].copy_(angles))
    expected = ops.rope.triton(q, k, positions, cos, sin, *others)
    positions[3], positions[7] = -1, cos.size(0)
    found = ops.rope.triton(q, k, positions, *guarded, *others)
    kept = [row for row in range(19) if row not in (3, 7)]
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine[kept], other[kept])
        assert mine.isfinite().all()


Q, K, POSITIONS, COS, SIN, WEIGHT, _, EPS = make_inputs(Case("", torch.float32, 4, 4, 2, 16, 16, normed=True), seed=7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": Q[0]}, "q must"),
        ({"q": Q.int()}, "q must be"),
        ({"q": Q[:, :0]}, "q must"),
        ({"k": K[:3]}, "k must"),
        ({"k": K[..., :8]}, "k must"),
        ({"k": K.half()}, "k must be"),
        ({"positions": POSITIONS.int()}, "positions must be"),
        ({"positions": POSITIONS[:3]}, "positions must"),
        ({"cos": COS.half()}, "cos must be"),
        ({"cos": COS[:0]}, r"cos must be .*P at least 1"),
        ({"cos": torch.ones(512, 9)}, r"cos must be .*R from 2 to D = 16"),
        ({"sin": SIN[:511]}, "sin must be"),
        ({"q_weight": WEIGHT[:15]}, "q_weight must"),
        ({"k_weight": WEIGHT.half()}, "k_weight must be"),
        ({"eps": float("nan")}, "eps must be at least 0, got nan"),
    ],
)
def test_arguments_outside_the_contract_are_refused(changes: dict[str, Any], message: str) -> None:
    values = {
        "q": Q, "k": K, "positions": POSITIONS, "cos": COS, "sin": SIN, "q_weight": WEIGHT, "k_weight": WEIGHT,
        "eps": EPS, **changes,
    }  # fmt: skip
    for call in (ops.rope, ops.rope.reference, ops.rope.triton):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
            call(*values.values())


@pytest.mark.parametrize("position", (-1, 512))
def test_positions_out_of_range_are_refused_by_name(isa: str, position: int) -> None:
    positions = POSITIONS.clone()
    positions[2] = position
    for call in (ops.rope, ops.rope.reference):
        with pytest.raises((ValueError, RuntimeError), match=rf"positions must be .*from 0 to 511.*{position}"):
            call(Q, K, positions, COS, SIN, None, None, EPS)
