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
    """activation(s ⊙ (x Wᵀ + B(A x)) + bias), in at least float32 (float64 for float64, the tests' oracle)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rows, factors, base = x.to(wide), arena.to(wide), weight.to(wide)
    y, ends, offsets = rows.new_empty(x.size(0), weight.size(0)), list(accumulate(slices)), segment_offsets.tolist()
    for segment, slot in enumerate(segment_slots.tolist()):
        run = rows[offsets[segment] : offsets[segment + 1]]
        for j, (width, end) in enumerate(zip(slices, ends, strict=True)):
            part = slice(end - width, end)
            a, b, rank = adapters[slot, j].tolist() if slot >= 0 else (0, 0, 0)
            w, s, c = overrides[slot, j].tolist() if slot >= 0 and overrides is not None else (-1, -1, -1)
            product = run @ (base[part] if w < 0 else factors[w : w + width * x.size(1)].view(width, x.size(1))).T
            down = run @ factors[a : a + rank * x.size(1)].view(rank, x.size(1)).T
            product += down @ factors[b : b + rank * width].view(rank, width)
            if s >= 0 and columns is not None:
                product *= columns[s : s + width].to(wide)
            if c >= 0 and columns is not None:
                product += columns[c : c + width].to(wide)
            elif bias is not None:
                product += bias[part].to(wide)
            y[offsets[segment] : offsets[segment + 1], part] = product
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


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """A copy of the weight: the reference has no layout of its own."""
    return weight.clone()
