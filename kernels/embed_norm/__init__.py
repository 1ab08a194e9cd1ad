"""The input of a post-norm encoder in one pass: LayerNorm(words[token_ids] + added[places]) · weight + bias.

Shape key: V and P rows of the two tables, H values each, T tokens.

words [V, H] and added [P, H] (positions, with the type of the token in them) float32, bfloat16 or float16, of one
dtype; token_ids [T] int64 in 0 .. V - 1, places [T] int64 in 0 .. P - 1; weight and bias [H] float32 or of that dtype,
eps at least 0. -> [T, H] of that dtype, contiguous, with the bits of add_layer_norm(take_rows(words, token_ids),
take_rows(added, places), weight, bias, eps); what is taken is not written in between.

``reference.py`` is the definition, ``csrc/embed_norm.cpp`` the CPU kernel; on CUDA the three ops are called.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.embed_norm import reference
from embedmux.kernels.library import define
from embedmux.kernels.norm import check as check_norm
from embedmux.kernels.take_rows import check as check_rows

SCHEMA = (
    "(Tensor words, Tensor token_ids, Tensor added, Tensor places, Tensor weight, Tensor bias, float eps) -> Tensor"
)


def check(
    words: torch.Tensor, token_ids: torch.Tensor, added: torch.Tensor, places: torch.Tensor, weight: torch.Tensor,
    bias: torch.Tensor, eps: float,
) -> None:  # fmt: skip
    """What can be told from shapes and dtypes alone."""
    check_rows(words, token_ids)
    check_rows(added, places)
    check_norm(words, None, weight, bias, eps)
    if added.dtype != words.dtype:
        checks.dtype_error("added", added, f"{words.dtype} as words")
    if added.size(1) != words.size(1):
        checks.shape_error("added", added, f"[P, H] with H = {words.size(1)}")
    if places.shape != token_ids.shape:
        checks.shape_error("places", places, f"{list(token_ids.shape)} as token_ids")


def _reference(
    words: torch.Tensor, token_ids: torch.Tensor, added: torch.Tensor, places: torch.Tensor, weight: torch.Tensor,
    bias: torch.Tensor, eps: float,
) -> torch.Tensor:  # fmt: skip
    check(words, token_ids, added, places, weight, bias, eps)
    return reference.embed_norm(words, token_ids, added, places, weight, bias, eps)


def _fake(
    words: torch.Tensor, token_ids: torch.Tensor, added: torch.Tensor, places: torch.Tensor, weight: torch.Tensor,
    bias: torch.Tensor, eps: float,
) -> torch.Tensor:  # fmt: skip
    check(words, token_ids, added, places, weight, bias, eps)
    return words.new_empty(token_ids.size(0), words.size(1))


embed_norm = define("embed_norm", SCHEMA, reference=_reference, fake=_fake, is_composed=True)
