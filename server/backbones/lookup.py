"""The low-rank update of a token embedding: B(A x) where x is one token, so that A x is a column of A."""

from __future__ import annotations

import torch

from embedmux.server.packed import FusedLinear, LowRankTables, Segments


class LoraLookup:
    """What the adapters of a batch add to the embedding of each token.

    Factors stand where those of linears do: A [rank, vocabulary], B [rank, width]. Merged adapters have theirs there,
    too: a copy of the whole table would save a look-up nothing. Adapters of up to ``max_rank`` are computed. Products
    are summed rank by rank, each rounded by itself, so that a token's bits depend on its id and its adapter alone.
    """

    def __init__(self, linear: FusedLinear, *, low_rank: LowRankTables, max_rank: int) -> None:
        ((_, self.width),) = linear.slices
        self.vocabulary, self.max_rank = linear.in_features, max_rank
        self.low_rank = low_rank.data
        self.adapters = low_rank.tables[linear.name]

    def __call__(self, token_ids: torch.Tensor, segments: Segments) -> torch.Tensor:
        """token_ids [T] int64 -> [T, width] float32; zeros where a token has no adapter."""
        if token_ids.device.type == "cpu":
            return self.by_segment(token_ids, segments)
        return self.by_token(token_ids, segments)

    def by_segment(self, token_ids: torch.Tensor, segments: Segments) -> torch.Tensor:
        """Reads the segments on the host, which costs nothing where they are there anyway."""
        total = torch.zeros(len(token_ids), self.width)
        starts, slots = segments.offsets.tolist(), segments.adapters()
        for start, end, slot in zip(starts, starts[1:], slots, strict=False):
            a_offset, b_offset, rank = self.adapters[slot, 0].tolist() if slot >= 0 else (0, 0, 0)
            for r in range(rank):
                a = self.low_rank.narrow(0, a_offset + r * self.vocabulary, self.vocabulary)
                b = self.low_rank.narrow(0, b_offset + r * self.width, self.width)
                total[start:end] += a[token_ids[start:end]].float()[:, None] * b.float()
        return total

    def by_token(self, token_ids: torch.Tensor, segments: Segments) -> torch.Tensor:
        """The same without a look at any value on the host; rows behind the last segment are undefined."""
        device = token_ids.device
        total = torch.zeros(len(token_ids), self.width, device=device)
        rows = torch.arange(len(token_ids), dtype=torch.int32, device=device)
        place = torch.searchsorted(segments.offsets[1:].contiguous(), rows, right=True)
        slots = segments.slots[place.clamp(max=len(segments.slots) - 1)].long()
        found = self.adapters[slots.clamp(min=0), 0]
        ranks = torch.where(slots >= 0, found[:, 2], 0)
        columns = torch.arange(self.width, device=device)
        for r in range(self.max_rank):
            is_used = r < ranks
            # Where nothing is used the first element is read and put aside: it may be anything, NaN too.
            a = self.low_rank[torch.where(is_used, found[:, 0] + r * self.vocabulary + token_ids, 0)].float()
            b = self.low_rank[torch.where(is_used, found[:, 1] + r * self.width, 0)[:, None] + columns].float()
            total += torch.where(is_used[:, None], a[:, None] * b, 0.0)
        return total
