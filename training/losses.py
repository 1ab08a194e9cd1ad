"""The loss of each task over the vectors of one batch."""

from collections.abc import Callable, Sequence

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss
from torch import Tensor, nn

# (one [N, D] per column of the batch, labels [N]) -> scalar
Loss = Callable[[Sequence[Tensor], Tensor], Tensor]

TEMPERATURE = 0.05  # of retrieval and text-matching; their losses take its inverse, the scale
CONTRASTIVE_TEMPERATURE = 0.1


def task_loss(task: str, encoder: SentenceTransformer) -> Loss:
    """The loss of `task`.

    Retrieval is InfoNCE over in-batch and mined negatives, text-matching is CoSENT, classification and clustering are
    supervised contrastive.
    """
    match task:
        case "retrieval":
            ranking: Loss = MultipleNegativesRankingLoss(encoder, scale=1 / TEMPERATURE).compute_loss_from_embeddings
            return ranking
        case "text-matching":
            ordering: Loss = CoSENTLoss(encoder, scale=1 / TEMPERATURE).compute_loss_from_embeddings
            return ordering
        case "classification" | "clustering":
            return supervised_contrast
    raise ValueError(
        f"task {task!r} has no loss; the tasks are retrieval, text-matching, classification and clustering"
    )


def drift(columns: Sequence[Tensor], frozen: Sequence[Tensor]) -> Tensor:
    """How far the adapter has moved the texts of a batch against each other: mean squared change of their cosines.

    Both hold the same columns [N, D], `frozen` from the bare model -> scalar float32. Added to a contrastive loss it
    keeps what the bare model knows of labels that training never shows (relational distillation, Park et al., CVPR
    2019; Jina v5 trains its classification adapter so).
    """
    after, before = (nn.functional.normalize(torch.cat(list(side)).float(), dim=1) for side in (columns, frozen))
    return nn.functional.mse_loss(after @ after.T, before @ before.T)


def supervised_contrast(columns: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Pulls texts of one label together and pushes the rest of the batch away (Khosla et al., NeurIPS 2020, L_out).

    One column [N, D] and labels [N] -> scalar, computed in float32. Unlike in-batch pairs it works with two labels as
    well as with eighty. A text that is alone with its label in the batch is left out of the mean.
    """
    (vectors,) = columns
    vectors = nn.functional.normalize(vectors.float(), dim=1)
    self_pairs = torch.eye(len(labels), dtype=torch.bool, device=vectors.device)
    similarity = (vectors @ vectors.T / CONTRASTIVE_TEMPERATURE).masked_fill(self_pairs, -torch.inf)
    log_share = similarity - similarity.logsumexp(dim=1, keepdim=True)
    positives = (labels[:, None] == labels[None, :]) & ~self_pairs
    num_positives = positives.sum(dim=1)
    mean_log_share = log_share.masked_fill(~positives, 0.0).sum(dim=1) / num_positives.clamp(min=1)
    return -mean_log_share[num_positives > 0].mean()
