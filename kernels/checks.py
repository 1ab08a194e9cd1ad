"""Builds the message after a cheap inline comparison has failed; the hot path never gets here."""

from typing import NoReturn

import torch


def shape_error(name: str, tensor: torch.Tensor, wanted: str) -> NoReturn:
    """Raises ValueError: argument, wanted shape (as text, ``[T, K]`` with its numbers), shape that came."""
    raise ValueError(f"{name} must be {wanted}, got {list(tensor.shape)}")


def dtype_error(name: str, tensor: torch.Tensor, wanted: str) -> NoReturn:
    """Raises TypeError: argument, wanted dtypes, dtype that came."""
    raise TypeError(f"{name} must be {wanted}, got {tensor.dtype}")


def value_error(name: str, value: object, wanted: str) -> NoReturn:
    """Raises ValueError: argument, wanted values, value that came."""
    raise ValueError(f"{name} must be {wanted}, got {value!r}")
