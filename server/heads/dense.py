"""The pooled vector: cut, projected or passed through further linears, normalised and encoded on the device."""

from __future__ import annotations

import torch

from embedmux.kernels import ops
from embedmux.server.backbones.layers import Linear
from embedmux.server.packed import TokenStates
from embedmux.server.records import OutputSpec, Pooling

NORM_EPS = 1e-5  # torch's own, which the published code takes


def encode_dense(
    states: TokenStates,
    chosen: torch.Tensor | None,
    spec: OutputSpec,
    ranges: torch.Tensor | None,
    pooling: Pooling,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and finiteness of the chosen sequences (None: all), in one call; see ``pool_encode``."""
    norm = states.norm
    found: tuple[torch.Tensor, torch.Tensor] = ops.pool_encode.handle(
        states.hidden, states.residual, norm.weight if norm else None, norm.bias if norm else None,
        norm.eps if norm else 0.0, norm.kind if norm else "none", states.offsets, chosen, pooling.value,
        spec.dimensions, True, spec.encoding.value, ranges,
    )  # fmt: skip
    return found


def pool_rows(
    states: TokenStates, chosen: torch.Tensor | None, pooling: Pooling, *, normalize: bool = False
) -> torch.Tensor:
    """The chosen sequences' pooled states behind the final norm, float32 [m, H]."""
    norm = states.norm
    rows: torch.Tensor = ops.pool_encode.handle(
        states.hidden, states.residual, norm.weight if norm else None, norm.bias if norm else None,
        norm.eps if norm else 0.0, norm.kind if norm else "none", states.offsets, chosen, pooling.value,
        states.hidden.shape[1], normalize, "float32", None,
    )[0]  # fmt: skip
    return rows


def encode_vectors(
    vectors: torch.Tensor,
    dimensions: int,
    encoding: str,
    ranges: torch.Tensor | None = None,
    *,
    normalize: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 vectors [m, D] cut to ``dimensions``, normalised and encoded: codes and finiteness."""
    offsets = torch.arange(len(vectors) + 1, dtype=torch.int32, device=vectors.device)
    found: tuple[torch.Tensor, torch.Tensor] = ops.pool_encode.handle(
        vectors, None, None, None, 0.0, "none", offsets, None, "cls", dimensions, normalize, encoding, ranges
    )
    return found


class DenseModules:
    """sentence-transformers' Dense modules behind the pooling, in float32: each a linear without an activation."""

    def __init__(self, linears: list[Linear]) -> None:
        self._linears = linears

    def __call__(self, pooled: torch.Tensor, dimensions: int) -> torch.Tensor:
        """Pooled states [m, H] float32 -> [m, D]; what is above ``dimensions`` is cut when it is encoded."""
        for linear in self._linears:
            pooled = linear(pooled)
        return pooled


class NormedCut:
    """A layer norm without weights over the whole vector, before a smaller size is cut from it (Nomic's v1.5)."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._ones = torch.ones(size, device=device)

    def __call__(self, pooled: torch.Tensor, dimensions: int) -> torch.Tensor:
        """Pooled states [m, H] float32 -> [m, H]; what is above ``dimensions`` is cut when it is encoded."""
        found: torch.Tensor = torch.ops.embedmux.add_layer_norm(pooled, None, self._ones, None, NORM_EPS)
        return found


class Projections:
    """Chained linears to ever smaller sizes: a size is reached through all the larger ones, never by cutting."""

    def __init__(self, linears: dict[int, Linear]) -> None:
        """``linears`` by the size they lead to, largest first."""
        self._linears = linears

    def __call__(self, pooled: torch.Tensor, dimensions: int) -> torch.Tensor:
        """Pooled states [m, H] float32 -> [m, dimensions]."""
        for size, linear in self._linears.items():
            if size >= dimensions:
                pooled = linear(pooled)
        return pooled
