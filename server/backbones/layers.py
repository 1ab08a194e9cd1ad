"""Layers shared by the backbones: thin owners of weights around the ops."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from embedmux.kernels import ops
from embedmux.kernels.lora_matmul import GATED
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.packed import Batch, FusedLinear, LowRankTables, PooledRows, Segments

Weight = tuple[torch.Tensor, torch.Tensor | None]  # plain (or a stand-in), and the layout that kernels read
GATED_STEP = 32  # halves of other widths are multiplied from the plain weight on AMX; see kernels/lora_matmul


class LoraLinear:
    """One fused linear with its adapters: y = activation(x Wᵀ + b + per segment B(A x)).

    The adapters' factors live in one flat tensor; a batch changes only two small integer arrays. A bias is taken where
    the checkpoint has one for all slices; ``is_biased`` says whether the family has one.
    """

    def __init__(
        self,
        linear: FusedLinear,
        checkpoint: Checkpoint,
        *,
        low_rank: LowRankTables,
        dtype: torch.dtype,
        is_biased: bool,
        activation: str = "none",
    ) -> None:
        self.bias = torch.cat(read_slices(linear, checkpoint, dtype, is_bias=True)) if is_biased else None
        self.dtype, self.activation, self.is_int8 = dtype, activation, low_rank.is_int8
        self.widths = [width for _, width in linear.slices]
        self.low_rank = low_rank.data
        self.adapters = low_rank.tables[linear.name]
        read_as = torch.float32 if self.is_int8 else dtype
        self.base = self.lay_out(torch.cat(read_slices(linear, checkpoint, read_as)))
        self.merged: dict[int, Weight] = {}  # by slot: the weights of adapters that are merged into them
        low_rank.linears[linear.name] = self

    def __call__(self, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        """x [T, in] -> [T, out] ([T, out / 2] from a gated activation), same dtype."""
        if segments.sets is None:
            return self._multiply(x, self.base, segments)
        weights = self.weight_sets(segments)
        return torch.cat([self._multiply(x[a:b], weights[of], own) for a, b, of, own in segments.runs()])

    def weight_sets(self, segments: Segments) -> list[Weight]:
        """The base model's weight, and that of each adapter which is merged into its rows' weights."""
        return [self.base, *(self.merged.get(slot, self.base) for slot in segments.merged)]

    def _multiply(self, x: torch.Tensor, weight: Weight, segments: Segments) -> torch.Tensor:
        plain, packed = weight
        found: torch.Tensor = torch.ops.embedmux.lora_matmul(
            x, plain, self.bias, self.low_rank, self.adapters,
            segments.offsets, segments.slots, self.widths, self.activation, packed,
        )  # fmt: skip
        return found

    def lay_out(self, weight: torch.Tensor) -> Weight:
        """weight [out, in] of any floating dtype as this linear multiplies it."""
        if self.is_int8:
            return _stand_in(weight.shape, self.dtype), ops.pack_weight_int8(weight)
        return _packed(weight.to(self.dtype), self.activation)


class Linear:
    """A linear that no adapter changes, such as a head's: y = x Wᵀ + b with the same promise for a row's bits."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """weight [out, in] and bias [out] of one dtype, on the device they stay on."""
        out, device = weight.shape[0], weight.device
        self.bias, self.widths = bias, [out]
        self.weight, self.packed = _packed(weight.contiguous(), "none")
        self.nothing = torch.zeros(1, dtype=weight.dtype, device=device)
        self.adapters = torch.zeros(1, 1, 3, dtype=torch.int64, device=device)
        self.slots = torch.full((1,), -1, dtype=torch.int32, device=device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [n, in] -> [n, out], same dtype."""
        offsets = torch.tensor([0, x.shape[0]], dtype=torch.int32).to(x.device, non_blocking=True)
        found: torch.Tensor = torch.ops.embedmux.lora_matmul(
            x.contiguous(), self.weight, self.bias, self.nothing, self.adapters,
            offsets, self.slots, self.widths, "none", self.packed,
        )  # fmt: skip
        return found


class AddLayerNorm:
    """LayerNorm(x + residual), statistics in float32."""

    def __init__(self, name: str, checkpoint: Checkpoint, *, size: int, eps: float, dtype: torch.dtype) -> None:
        self.weight = checkpoint.take(f"{name}.weight", (size,), dtype)
        self.bias = checkpoint.take(f"{name}.bias", (size,), dtype)
        self.eps = eps

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """x and residual [T, size] -> [T, size], same dtype."""
        found: torch.Tensor = torch.ops.embedmux.add_layer_norm(x, residual, self.weight, self.bias, self.eps)
        return found


class PreNorm:
    """The norm at the start of a pre-norm block, and the residual sum that the next block adds to.

    kind "layer" or "rms"; a Gemma norm multiplies by 1 + weight (``adds_one``).
    """

    def __init__(
        self, name: str, checkpoint: Checkpoint, *, size: int, eps: float, kind: str, is_biased: bool = False,
        adds_one: bool = False,
    ) -> None:  # fmt: skip
        weight = checkpoint.take(f"{name}.weight", (size,))
        # Kept in float32: it is small, and 1 + weight would lose its last bits in bfloat16.
        self.weight = weight + 1 if adds_one else weight
        self.bias = checkpoint.take(f"{name}.bias", (size,)) if is_biased else None
        self.eps = eps
        self.kind = kind

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """x [T, size], residual [T, size] or None -> (norm of the sum, the sum), same dtype."""
        normed, total = torch.ops.embedmux.pre_norm(x, residual, self.weight, self.bias, self.eps, self.kind)
        return normed, total


class Rotary:
    """Rotary positions: cos and sin [positions, R / 2] of the frequencies theta^(-2 i / R) / divisor.

    Frequencies and angles are rounded to float32 as in transformers and in the code that models are trained with: at
    position 600 an angle is 3e-5 off, which those weights expect and which exact angles would show in their vectors.
    """

    def __init__(self, *, theta: float, size: int, positions: int, device: torch.device, divisor: float = 1.0) -> None:
        frequencies = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size) / divisor
        angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
        self.cos, self.sin = angles.cos().to(device), angles.sin().to(device)

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor,
        q_weight: torch.Tensor | None = None, k_weight: torch.Tensor | None = None, eps: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """q [T, Hq, D] and k [T, Hkv, D] turned by their positions, after an RMSNorm per head if weights are given."""
        turned_q, turned_k = torch.ops.embedmux.rope(q, k, positions, self.cos, self.sin, q_weight, k_weight, eps)
        return turned_q, turned_k


class Attention:
    """Attention of one layer over packed sequences, with the keys and values of shared prefixes where there are any."""

    def __init__(self, layer: int, *, causal: bool, window: int, scale: float) -> None:
        """``window``: a token sees those at most this far away; -1 is no limit."""
        self.layer, self.causal, self.window, self.scale = layer, causal, window, scale

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: Batch, *, is_last: bool = False
    ) -> torch.Tensor:
        """q [T, Hq, D], k and v [T, Hkv, D] -> [T, Hq * D]; in the last layer pooled rows alone are defined."""
        asked = batch.pooled.rows if is_last and batch.pooled is not None else None
        prefix: tuple[torch.Tensor | None, ...] = (None, None, None, None)
        if (shared := batch.prefixes) is not None:
            keys, values = shared.keys[self.layer], shared.values[self.layer]
            keys.index_copy_(0, shared.target, k.index_select(0, shared.source))
            values.index_copy_(0, shared.target, v.index_select(0, shared.source))
            prefix = (keys, values, shared.offsets, shared.of)
        context: torch.Tensor = torch.ops.embedmux.attention(
            q, k, v, batch.offsets, self.causal, self.window, self.scale, *prefix, batch.num_keys, asked
        )
        return context.view(q.shape[0], -1)


class PostNormLayers:
    """A post-norm encoder's layers in one call, as kernels/post_norm_layers has it."""

    def __init__(
        self, linears: Sequence[LoraLinear], norms: Sequence[AddLayerNorm], *, num_heads: int, scale: float
    ) -> None:
        """Of each layer query-key-value, attention output, up (with the activation) and down; its two norms."""
        self.linears = linears
        self.num_heads, self.scale, self.eps = num_heads, scale, norms[0].eps
        self.biases = [linear.bias for linear in linears]
        self.norms = [tensor for norm in norms for tensor in (norm.weight, norm.bias)]
        self.adapters = [linear.adapters for linear in linears]
        self.base = _as_lists([linear.base for linear in linears])

    def __call__(self, states: torch.Tensor, batch: Batch, num_layers: int) -> torch.Tensor:
        """states [T, hidden] -> [T, hidden] behind the first layers, same dtype."""
        segments, end = batch.segments, 4 * num_layers
        weights, packed = self.base
        if segments.sets is not None:
            sets = [linear.weight_sets(segments) for linear in self.linears[:end]]
            layers = (sets[first : first + 4] for first in range(0, end, 4))
            weights, packed = _as_lists(
                [weight for layer in layers for of in zip(*layer, strict=True) for weight in of]
            )
        elif num_layers < len(self.linears) // 4:
            weights, packed = weights[:end], packed[:end]
        found: torch.Tensor = torch.ops.embedmux.post_norm_layers(
            states, batch.offsets, self.num_heads, self.scale, self.eps, self.linears[2].activation,
            weights, self.biases[:end], self.norms[:end], self.linears[0].low_rank, self.adapters[:end],
            segments.offsets, segments.slots, packed, segments.sets,
        )  # fmt: skip
        return found


def _as_lists(weights: Sequence[Weight]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [plain for plain, _ in weights], [packed for _, packed in weights if packed is not None]


def split_heads(
    qkv: torch.Tensor, *, num_heads: int, num_kv_heads: int, head_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of a fused projection [T, (Hq + 2 Hkv) D]: q [T, Hq, D], k and v [T, Hkv, D]."""
    heads = qkv.view(qkv.shape[0], -1, head_size)
    return heads[:, :num_heads], heads[:, num_heads : num_heads + num_kv_heads], heads[:, num_heads + num_kv_heads :]


def take_rows(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """table [V, width], rows [n] int64 -> [n, width], as for the embedding of tokens."""
    found: torch.Tensor = torch.ops.embedmux.take_rows(table, rows)
    return found


def keep_pooled(pooled: PooledRows, *states: torch.Tensor) -> list[torch.Tensor]:
    """The pooled row of each sequence of states [T, ...], in the order of the sequences."""
    return [take_rows(state, pooled.rows) for state in states]


def read_slices(
    linear: FusedLinear, checkpoint: Checkpoint, dtype: torch.dtype, *, is_bias: bool = False
) -> list[torch.Tensor]:
    """The weights [width, in] (or biases [width]) of a fused linear's slices, out of the checkpoint."""
    whole: dict[str, torch.Tensor] = {}
    for name, (in_features, width) in linear.targets.items():
        if is_bias:
            whole[name] = checkpoint.take(f"{name}.bias", (width,), dtype)
        else:
            whole[name] = checkpoint.take(f"{name}.weight", (width, in_features), dtype)
    return [whole[name][start : start + width] for name, start, width in linear.parts]


def _packed(weight: torch.Tensor, activation: str) -> Weight:
    """The weight and its layout for the machine; where the layout says it all, a stand-in without memory of its own.

    The GPU's kernels read the plain weight; on the CPU a layout of its own is faster.
    """
    if weight.device.type != "cpu" or not ops.HAS_EXTENSION:
        return weight, None
    packed = ops.pack_weight(weight)
    is_amx = weight.dtype == torch.bfloat16 and ops.cpu_isa() == "amx"
    if is_amx and activation in GATED and weight.shape[0] % (2 * GATED_STEP):
        return weight, packed
    return _stand_in(weight.shape, weight.dtype), packed


def _stand_in(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """A weight in name alone, beside a layout that says it all."""
    return torch.zeros((), dtype=dtype).expand(shape)
