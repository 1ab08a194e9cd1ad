"""pool_normalize on the GPU: the kernel of pool_encode without a final norm, writing float32."""

import torch

from embedmux.kernels.pool_encode.cuda import launch_pooling
from embedmux.kernels.pool_normalize import check


def pool_normalize(
    hidden: torch.Tensor, offsets: torch.Tensor, pooling: str, dimensions: int, normalize: bool
) -> torch.Tensor:
    """As the contract says; H at most 8192."""
    check(hidden, offsets, pooling, dimensions)
    vectors = hidden.new_empty(offsets.size(0) - 1, dimensions, dtype=torch.float32)
    launch_pooling(
        hidden, None, None, None, 0.0, "none", offsets, None, pooling, dimensions, normalize, "float32", None,
        vectors, None,
    )  # fmt: skip
    return vectors
