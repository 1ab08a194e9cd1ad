"""Late interaction: for each token of a query the greatest dot product with a document's tokens, added up.

Shape key: Tq query tokens of nq queries, Td document tokens of nd documents, D dimensions.

queries [Tq, D] and documents [Td, D] of one dtype, float32, bfloat16, float16 or int8 (then D is at most 1024, and
scales are the caller's) -> scores [nq, nd] float32, contiguous. query_offsets [nq + 1] and document_offsets [nd + 1]
int32, on the same device, cut the packed tokens; they run from 0 to Tq and to Td and never fall. On CUDA, where
reading them would stop the device, their values are the caller's word; rows behind the last offset are never read.

Dot products are summed in at least float32 (int8 exactly, in whole numbers), then the maxima in at least float32 in a
fixed order, and the sum is rounded once. A document without tokens scores minus infinity with every query; a query
without tokens scores 0 with every other document. A dot product that is NaN counts as minus infinity, so a score is NaN
only where infinities of both signs meet. The score of a pair has the same bits whatever else is in the call.

Source: ColBERT, Khattab and Zaharia 2020. ``reference.py`` is the definition, ``csrc/maxsim.cpp`` the CPU kernel,
``cuda.py`` the Triton kernel.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.maxsim import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float64)
MAX_INT8_DIMENSIONS = 1024
SCHEMA = "(Tensor queries, Tensor query_offsets, Tensor documents, Tensor document_offsets) -> Tensor"


def check(
    queries: torch.Tensor, query_offsets: torch.Tensor, documents: torch.Tensor, document_offsets: torch.Tensor
) -> None:
    if queries.dim() != 2 or queries.size(1) == 0:
        checks.shape_error("queries", queries, "[Tq, D] with D at least 1")
    if documents.dim() != 2 or documents.size(1) != queries.size(1):
        checks.shape_error("documents", documents, f"[Td, D] with D = {queries.size(1)}")
    if queries.dtype not in DTYPES:
        checks.dtype_error("queries", queries, "torch.float32, torch.bfloat16, torch.float16 or torch.int8")
    if documents.dtype != queries.dtype:
        checks.dtype_error("documents", documents, f"{queries.dtype} as queries")
    if queries.dtype == torch.int8 and queries.size(1) > MAX_INT8_DIMENSIONS:
        checks.shape_error("queries", queries, f"[Tq, D] with D at most {MAX_INT8_DIMENSIONS} in int8")
    for name, offsets in (("query_offsets", query_offsets), ("document_offsets", document_offsets)):
        if offsets.dim() != 1 or offsets.size(0) == 0:
            checks.shape_error(name, offsets, "[n + 1]")
        if offsets.dtype != torch.int32:
            checks.dtype_error(name, offsets, "torch.int32")


def _reference(
    queries: torch.Tensor, query_offsets: torch.Tensor, documents: torch.Tensor, document_offsets: torch.Tensor
) -> torch.Tensor:
    check(queries, query_offsets, documents, document_offsets)
    for name, offsets, tokens in (
        ("query_offsets", query_offsets, queries),
        ("document_offsets", document_offsets, documents),
    ):
        values = offsets.tolist()
        if values[0] != 0 or values[-1] != tokens.size(0) or values != sorted(values):
            checks.value_error(name, values, f"rising from 0 to {tokens.size(0)}")
    return reference.maxsim(queries, query_offsets, documents, document_offsets)


def _fake(
    queries: torch.Tensor, query_offsets: torch.Tensor, documents: torch.Tensor, document_offsets: torch.Tensor
) -> torch.Tensor:
    check(queries, query_offsets, documents, document_offsets)
    return queries.new_empty(query_offsets.size(0) - 1, document_offsets.size(0) - 1, dtype=torch.float32)


maxsim = define("maxsim", SCHEMA, reference=_reference, fake=_fake, has_triton=True)
