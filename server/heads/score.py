"""A reranker's raw logit: a classifier on the pooled token, or the language model's logits of one or two tokens."""

from __future__ import annotations

import math

import torch

from embedmux.server.backbones.layers import Linear


class TokenLogits:
    """logit = h · w_positive - h · w_negative at the last token; without a negative token the first alone."""

    def __init__(self, linear: Linear) -> None:
        """``linear``: the rows of the language model's head for the tokens, positive first."""
        self._linear = linear

    def __call__(self, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled states [m, H] float32 -> [m] float32."""
        logits = self._linear(pooled)
        return logits[:, 0] - logits[:, 1] if logits.shape[1] == 2 else logits[:, 0]


class Classifier:
    """A dense layer with an activation, maybe a norm, and the last linear to one label."""

    def __init__(
        self, dense: Linear | None, last: Linear, *, activation: str = "none",
        norm: tuple[torch.Tensor, torch.Tensor | None, float] | None = None,
    ) -> None:  # fmt: skip
        """``activation``: "tanh", "gelu" or "none"; ``norm``: weight, bias and eps of a LayerNorm behind it."""
        self._dense, self._last, self._activation, self._norm = dense, last, activation, norm

    def __call__(self, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled states [m, H] float32 -> [m] float32."""
        if self._dense is not None:
            pooled = activate(self._dense(pooled), self._activation)
        if self._norm is not None:
            weight, bias, eps = self._norm
            pooled = torch.ops.embedmux.add_layer_norm(pooled, None, weight, bias, eps)
        return self._last(pooled)[:, 0]


def activate(x: torch.Tensor, kind: str) -> torch.Tensor:
    """An activation in float64, rounded once: torch's float32 ones differ between a row's vector and scalar parts."""
    wide = x.double()
    if kind == "tanh":
        wide = wide.tanh()
    elif kind == "gelu":
        wide = 0.5 * wide * (1 + torch.erf(wide / math.sqrt(2)))
    return wide.to(x.dtype)
