"""Search among product-quantised codes in plain torch: the definition that every faster kernel is compared with."""

import torch

BLOCK_ROWS = 64


def pq_topk(
    tables: torch.Tensor, codes: torch.Tensor, k: int, packed: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and ids of the k best rows of each query; ``packed`` holds nothing that codes do not."""
    nibbles = torch.stack((codes & 15, codes >> 4), 2).flatten(1).long()
    scores = tables.new_zeros(tables.size(0), codes.size(0))
    for part, entries in zip(nibbles.unbind(1), tables.unbind(1), strict=True):
        scores += entries[:, part]
    scores = scores.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    scores, ids = scores.sort(dim=1, descending=True, stable=True)
    return scores[:, :k].contiguous(), ids[:, :k].contiguous()


def pack_pq(codes: torch.Tensor) -> torch.Tensor:
    """Blocks of 64 rows, in each byte by byte the codes of all its rows; zero where the last has no row."""
    padded = torch.nn.functional.pad(codes, (0, 0, 0, -codes.size(0) % BLOCK_ROWS))
    return padded.view(-1, BLOCK_ROWS, codes.size(1)).transpose(1, 2).contiguous()
