"""Fresh memory is NaN in every kernel test, and a test may walk the instruction sets of this machine."""

from collections.abc import Iterator

import pytest
import torch

from embedmux.kernels import ops

LEVELS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")
HOST_LEVELS = LEVELS[: LEVELS.index(ops.cpu_isa()) + 1] if ops.HAS_EXTENSION else ("reference",)


@pytest.fixture(autouse=True)
def fresh_memory_is_nan() -> Iterator[None]:
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=HOST_LEVELS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Caps the compiled kernels at one instruction set."""
    if ops.HAS_EXTENSION:
        torch.ops.embedmux.set_max_cpu_isa(request.param)
    yield request.param
    if ops.HAS_EXTENSION:
        torch.ops.embedmux.set_max_cpu_isa(LEVELS[-1])


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of torch's threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
