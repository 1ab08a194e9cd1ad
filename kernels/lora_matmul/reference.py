"""The low-rank product in plain torch: the definition that every faster kernel is compared with."""

from itertools import accumulate

import torch
import torch.nn.functional as F


def lora_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    arena: torch.Tensor,
    adapters: torch.Tensor,
    segment_offsets: torch.Tensor,
    segment_slots: torch.Tensor,
    slices: list[int],
    activation: str,
    packed: torch.Tensor | None,
    overrides: torch.Tensor | None = None,
    columns: torch.Tensor | None = None,
) -> torch.Tensor:
    """activation(s ⊙ (x Wᵀ + B(A x)) + bias), in at least float32 (float64 for float64, the tests' oracle).

    Of packed only the dtype counts: int8 says that x Wᵀ is a product of codes.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    rows, factors, base = x.to(wide), arena.to(wide), weight.to(wide)
    y, ends, offsets = rows.new_empty(x.size(0), weight.size(0)), list(accumulate(slices)), segment_offsets.tolist()
    is_int8 = packed is not None and packed.dtype == torch.int8
    codes, in_steps = (quantize_rows(rows), quantize_channels) if is_int8 else (rows, torch.clone)
    for segment, slot in enumerate(segment_slots.tolist()):
        own = slice(offsets[segment], offsets[segment + 1])
        run = rows[own]
        for j, (width, end) in enumerate(zip(slices, ends, strict=True)):
            part = slice(end - width, end)
            a, b, rank = adapters[slot, j].tolist() if slot >= 0 else (0, 0, 0)
            w, s, c = overrides[slot, j].tolist() if slot >= 0 and overrides is not None else (-1, -1, -1)
            whole = base[part] if w < 0 else factors[w : w + width * x.size(1)].view(width, x.size(1))
            product = codes[own] @ in_steps(whole).T
            down = run @ factors[a : a + rank * x.size(1)].view(rank, x.size(1)).T
            product += down @ factors[b : b + rank * width].view(rank, width)
            if s >= 0 and columns is not None:
                product *= columns[s : s + width].to(wide)
            if c >= 0 and columns is not None:
                product += columns[c : c + width].to(wide)
            elif bias is not None:
                product += bias[part].to(wide)
            y[own, part] = product
    return activate(y, activation).to(x.dtype)


def activate(y: torch.Tensor, activation: str) -> torch.Tensor:
    """y [T, N] -> [T, N], or [T, N / 2] for a gated activation: act(first half) · second half."""
    gate, up = y.chunk(2, dim=1) if activation in ("swiglu", "geglu", "geglu_tanh") else (y, None)
    name = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}.get(activation, activation)
    if name in ("gelu", "gelu_tanh"):
        gate = F.gelu(gate, approximate="tanh" if name == "gelu_tanh" else "none")
    elif name != "none":
        gate = F.silu(gate) if name == "silu" else F.relu(gate)
    return gate if up is None else gate * up


def pack_weight_int8(weight: torch.Tensor) -> torch.Tensor:
    """The codes' layout is the compiled kernel's own; there is no other that reads it."""
    raise NotImplementedError("int8 weights need the compiled kernels on the CPU; build the extension (make install)")


def quantize_channels(weight: torch.Tensor) -> torch.Tensor:
    """weight [N, K] as the codes of pack_weight_int8 have it, times their scales."""
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return (weight / scale).round() * scale


def quantize_rows(x: torch.Tensor) -> torch.Tensor:
    """x [T, K] as the codes of each row have it: 254 steps from its least value or 0 to its largest or 0."""
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 254).clamp(min=1e-32)
    zero = (-low / scale + 0.01).round()
    return ((x / scale + zero).round().clamp(0, 255) - zero) * scale


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """A copy of the weight: the reference has no layout of its own."""
    return weight.clone()
