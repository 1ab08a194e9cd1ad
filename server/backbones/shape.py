"""What the engine must know of a backbone before its weights are read, the same for every family."""

from __future__ import annotations

from typing import Protocol

import torch

from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.checkpoint.folder import Config
from embedmux.server.packed import Batch, FusedLinear, LowRankTables, TokenStates


class Shape(Protocol):
    """Sizes of a backbone; each family has a frozen dataclass of its own with these and what else it needs."""

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""

    @property
    def hidden_size(self) -> int:
        """Values of a token's state."""

    @property
    def num_layers(self) -> int:
        """Layers."""

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads."""

    @property
    def head_size(self) -> int:
        """Values of a head."""

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only what stands before it, so that the states of a prefix may be shared."""

    @property
    def linears(self) -> tuple[FusedLinear, ...]:
        """Every matmul that an adapter may change, in the order of the forward pass."""


class Backbone(Protocol):
    """Token ids of a packed batch in, token states out. ``batch.pooled`` rows alone leave the last layer.

    ``words`` [vocabulary, hidden] is the token embedding.
    """

    words: torch.Tensor

    def __call__(self, batch: Batch) -> TokenStates:
        """Runs the layers."""


class Family(Protocol):
    """A module of this folder: how to read a config, and the backbone itself."""

    PREFIXES: tuple[str, ...]  # what may stand before tensor names in the files

    def read_shape(self, config: Config) -> Shape:
        """The shape that config.json describes; raises ModelRejected for what is not computed exactly."""

    def is_unused(self, name: str) -> bool:
        """Whether a tensor that nobody took is known to play no part in embeddings."""

    def Backbone(
        self, shape: Shape, checkpoint: Checkpoint, *, low_rank: LowRankTables, dtype: torch.dtype
    ) -> Backbone:
        """The backbone with its weights on the checkpoint's device."""


def targets_of(linears: tuple[FusedLinear, ...]) -> dict[str, tuple[int, int]]:
    """Checkpoint name of every linear an adapter may change -> (in_features, out_features)."""
    return {name: size for linear in linears if not linear.is_lookup for name, size in linear.targets.items()}
