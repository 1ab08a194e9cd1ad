"""The ops one by one: the definition, and what answers where no kernel does them at once."""

import torch

from embedmux.kernels.norm import add_layer_norm
from embedmux.kernels.take_rows import take_rows


def embed_norm(
    words: torch.Tensor, token_ids: torch.Tensor, added: torch.Tensor, places: torch.Tensor, weight: torch.Tensor,
    bias: torch.Tensor, eps: float,
) -> torch.Tensor:  # fmt: skip
    """See the package; in float64 (tests) every op as its reference."""
    norm = add_layer_norm.reference if words.dtype == torch.float64 else add_layer_norm
    found: torch.Tensor = norm(take_rows(words, token_ids), take_rows(added, places), weight, bias, eps)
    return found
