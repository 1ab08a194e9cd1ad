"""The door to the kernels: importing it registers every op, then loads the compiled CPU kernels if they are there.

``ALL`` lists the ops; tests, benchmarks and the server's start-up report walk it.
"""

import importlib
import importlib.util

import torch

from embedmux.kernels.activation import gated_activation
from embedmux.kernels.attention import attention
from embedmux.kernels.embed_norm import embed_norm
from embedmux.kernels.lora_matmul import lora_matmul, pack_weight, pack_weight_int8
from embedmux.kernels.maxsim import maxsim
from embedmux.kernels.norm import add_layer_norm
from embedmux.kernels.pool_encode import pool_encode
from embedmux.kernels.pool_normalize import pool_normalize
from embedmux.kernels.post_norm_layers import post_norm_layers
from embedmux.kernels.pq_topk import pack_pq, pq_tables, pq_topk
from embedmux.kernels.pre_norm import pre_norm
from embedmux.kernels.quantize_pq import quantize_pq
from embedmux.kernels.quantize_rows import quantize_rows
from embedmux.kernels.rescore import rescore
from embedmux.kernels.rope import rope
from embedmux.kernels.similarity import similarity
from embedmux.kernels.similarity_topk import similarity_topk
from embedmux.kernels.take_rows import take_rows

ALL = (
    lora_matmul,
    attention,
    add_layer_norm,
    pre_norm,
    rope,
    gated_activation,
    post_norm_layers,
    pool_normalize,
    pool_encode,
    quantize_rows,
    quantize_pq,
    pq_topk,
    similarity,
    similarity_topk,
    rescore,
    maxsim,
    take_rows,
    embed_norm,
)
EXTENSION = "embedmux.kernels._C"

# A build without a compiler (EMBEDMUX_NO_EXT=1) has no extension; a broken one must fail loudly, hence no try.
HAS_EXTENSION = importlib.util.find_spec(EXTENSION) is not None
if HAS_EXTENSION:
    importlib.import_module(EXTENSION)


def backends(device: str) -> dict[str, str]:
    """Op name -> what answers on ``device`` ("cpu" or "cuda"): csrc, triton, ops (other ops) or reference."""
    return {op.name: op.backend(device) for op in ALL}


def cpu_isa() -> str:
    """The widest instruction set the compiled CPU kernels use here, or "none" without the extension."""
    return str(torch.ops.embedmux.cpu_isa()) if HAS_EXTENSION else "none"


def keep_freed_memory() -> None:
    """The process keeps memory that batches free, for the next one: fresh pages would cost some percent of it.

    To be called once the weights are there, whose loading frees far more than batches use.
    """
    if HAS_EXTENSION:
        torch.ops.embedmux.keep_freed_memory()


__all__ = [
    "ALL",
    "HAS_EXTENSION",
    "add_layer_norm",
    "attention",
    "backends",
    "cpu_isa",
    "embed_norm",
    "gated_activation",
    "keep_freed_memory",
    "lora_matmul",
    "maxsim",
    "pack_pq",
    "pack_weight",
    "pack_weight_int8",
    "pool_encode",
    "pool_normalize",
    "post_norm_layers",
    "pq_tables",
    "pq_topk",
    "pre_norm",
    "quantize_pq",
    "quantize_rows",
    "rescore",
    "rope",
    "similarity",
    "similarity_topk",
    "take_rows",
]
