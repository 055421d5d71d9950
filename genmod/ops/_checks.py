"""Argument checks shared by the public ops: each error names the argument, what it got and what is wanted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def tensor(name: str, value: Any) -> None:
    """A dense float32, float64, bfloat16 or float16 tensor of at least one dimension."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor")
    if value.dtype not in FLOATING:
        raise TypeError(f"{name}: got dtype {value.dtype}, expected float32, float64, bfloat16 or float16")
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: got a tensor of layout {value.layout}, expected a dense (strided) one")
    if value.dim() == 0:
        raise ValueError(f"{name}: got a 0-d tensor, expected at least one dimension, the batch first")


def like(name: str, value: Any, other_name: str, other: Tensor, shape: Any) -> None:
    """A tensor of the given shape, and of the dtype and device of another one."""
    tensor(name, value)
    if value.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {tuple(shape)}, as {other_name} has")
    if value.dtype != other.dtype:
        raise TypeError(f"{name}: got dtype {value.dtype}, expected {other.dtype}, as {other_name} has")
    if value.device != other.device:
        raise ValueError(f"{name}: got a tensor on {value.device}, expected {other.device}, where {other_name} is")


def choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")


def nonnegative(name: str, value: Any) -> None:
    """A finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a number")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}: got {value}, expected a finite number >= 0")


def broadcastable(name: str, value: Any, other: Tensor, shape: Any, dtype: torch.dtype | None = None) -> None:
    """A dense tensor on the device of another one that broadcasts to a shape; of a given dtype, or floating point."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor")
    if value.dtype not in (FLOATING if dtype is None else (dtype,)):
        wanted = "float32, float64, bfloat16 or float16" if dtype is None else dtype
        raise TypeError(f"{name}: got dtype {value.dtype}, expected {wanted}")
    if value.dim() > len(shape) or any(v not in (1, s) for v, s in zip(reversed(value.shape), reversed(shape))):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected one that broadcasts to {tuple(shape)}")
    if value.device != other.device:
        raise ValueError(f"{name}: got a tensor on {value.device}, expected {other.device}")
