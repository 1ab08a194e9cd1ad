"""pre_norm in Triton: the kernel of the norms, with the sum written on the way."""

import torch

from embedmux.kernels.norm.cuda import norm_rows
from embedmux.kernels.pre_norm import check


def pre_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    kind: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the contract in ``kernels/pre_norm/__init__.py``."""
    check(x, residual, weight, bias, eps, kind)
    normed, total = norm_rows(x, residual, weight, bias, eps, centred=kind == "layer", wants_sum=True)
    assert total is not None
    return normed, total
