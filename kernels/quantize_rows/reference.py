"""Quantisation in plain torch: the definition that every faster kernel is compared with."""

import torch


def quantize_rows(rows: torch.Tensor, encoding: str, ranges: torch.Tensor | None) -> torch.Tensor:
    """The rows in an encoding."""
    if encoding in ("float32", "float16", "bfloat16"):
        return rows.to(getattr(torch, encoding), copy=True, memory_format=torch.contiguous_format)
    if ranges is not None and encoding in ("int8", "uint8"):
        steps = (ranges[1] - ranges[0]) / 255
        levels = (rows - ranges[0]) / steps.where(steps != 0, 1)
        codes = levels.floor().nan_to_num(0.0, 255.0, 0.0).clamp(0, 255).to(torch.int16)
        return codes.to(torch.uint8) if encoding == "uint8" else (codes - 128).to(torch.int8)
    bits = torch.nn.functional.pad(rows > 0, (0, -rows.size(1) % 8))
    values = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], device=rows.device)
    codes = (bits.view(rows.size(0), bits.size(1) // 8, 8) * values).sum(2)
    return codes.to(torch.uint8) if encoding == "ubinary" else (codes - 128).to(torch.int8)
