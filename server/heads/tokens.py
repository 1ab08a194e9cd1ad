"""Token vectors for late interaction, and sparse weights by token id: heads over every token of a text."""

from __future__ import annotations

import numpy as np
import torch

from embedmux.server.backbones.layers import Linear
from embedmux.server.heads.dense import encode_vectors
from embedmux.server.packed import TokenStates
from embedmux.server.records import Encoding


def normed_tokens(states: TokenStates) -> torch.Tensor:
    """Every row's state behind the final norm, float32 [R, H]."""
    hidden, norm = states.hidden.float(), states.norm
    residual = None if states.residual is None else states.residual.float()
    if norm is None:
        return hidden if residual is None else hidden + residual
    found: torch.Tensor = torch.ops.embedmux.pre_norm(
        hidden, residual, norm.weight.float(), None if norm.bias is None else norm.bias.float(), norm.eps, norm.kind
    )[0]
    return found


class TokenVectors:
    """A projection of token states, brought to length one. Source: ColBERT, Khattab and Zaharia 2020.

    ``kept``: ids of the tokens that have a vector, () for all. Without ``normalizes`` they keep their length.
    """

    def __init__(self, layers: list[Linear], *, kept: tuple[int, ...] = (), normalizes: bool = True) -> None:
        """``layers``: one linear, or several with a ReLU between them; none leaves the states as they are."""
        self._layers = layers
        self._kept = np.array(kept, dtype=np.int64)
        self._normalizes = normalizes

    def __call__(
        self, tokens: torch.Tensor, token_ids: list[np.ndarray], starts: list[int], encoding: Encoding
    ) -> list[np.ndarray]:
        """Rows of bytes for each text: tokens [R, H] float32, the texts' ids and the row where each text starts."""
        places = [
            start + (np.flatnonzero(np.isin(ids, self._kept)) if len(self._kept) else np.arange(len(ids)))
            for ids, start in zip(token_ids, starts, strict=True)
        ]
        rows = torch.from_numpy(np.concatenate(places)).to(tokens.device)
        vectors = tokens.index_select(0, rows)
        for number, layer in enumerate(self._layers):
            vectors = layer(vectors.relu() if number else vectors)
        codes, _ = encode_vectors(vectors, vectors.shape[1], encoding.value, normalize=self._normalizes)
        packed = codes.cpu().view(torch.uint8).numpy()
        return np.split(packed, np.cumsum([len(place) for place in places])[:-1])


class SparseWeights:
    """BGE-M3's lexical weights: relu(w · h + b) of each token, the largest for each id (Chen et al. 2024)."""

    def __init__(self, linear: Linear, *, ignored: tuple[int, ...]) -> None:
        """``ignored``: ids that have no weight, such as the special tokens."""
        self._linear = linear
        self._ignored = np.array(ignored, dtype=np.int64)

    def __call__(
        self, tokens: torch.Tensor, token_ids: list[np.ndarray], starts: list[int]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids uint32, weights float32) of each text, by id; ids without weight are left out."""
        weights = self._linear(tokens).relu().cpu().numpy()[:, 0]
        found = []
        for ids, start in zip(token_ids, starts, strict=True):
            kinds, places = np.unique(ids, return_inverse=True)
            largest = np.zeros(len(kinds), dtype=np.float32)
            np.maximum.at(largest, places, weights[start : start + len(ids)])
            kept = (largest > 0) & ~np.isin(kinds, self._ignored)
            found.append((kinds[kept].astype(np.uint32), largest[kept]))
        return found
