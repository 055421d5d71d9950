"""Argument checks shared by the public ops: each error names the argument, what it got and what is wanted."""

from __future__ import annotations

import functools
import math
import os
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


def matching(name: str, value: Any, other_name: str, other: Tensor) -> None:
    """A tensor of the dtype and device of another one."""
    tensor(name, value)
    same_kind(name, value, other_name, other)


def same_kind(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """What is known to be a tensor has the dtype and device of another one."""
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


def of_shape(name: str, value: Any, other_name: str, other: Tensor, shape: Any) -> None:
    """A tensor of the given shape, on the device of another one, of any floating dtype."""
    tensor(name, value)
    if value.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {tuple(shape)}, as {other_name} has")
    _on_device_of(name, value, other_name, other)


def broadcastable(
    name: str, value: Any, other_name: str, other: Tensor, shape: Any, *, boolean: bool = False
) -> Tensor:
    """A floating (or boolean, if allowed) tensor that broadcasts to the given shape, on the device of another one."""
    wanted = "a floating-point or boolean tensor" if boolean else "a floating-point tensor"
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected {wanted}")
    if value.dtype not in FLOATING and not (boolean and value.dtype == torch.bool):
        raise TypeError(f"{name}: got dtype {value.dtype}, expected {wanted}")
    if value.dim() > len(shape) or any(a not in (1, b) for a, b in zip(value.shape[::-1], shape[::-1])):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected one that broadcasts to {tuple(shape)}")
    _on_device_of(name, value, other_name, other)
    return value


def _on_device_of(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(f"{name}: got a tensor on {value.device}, expected {other.device}, where {other_name} is")


def parameter(name: str, value: Any, x: Tensor, shape: tuple[int, ...]) -> None:
    """A tensor of the given shape on the device of `x`, in the dtype of `x` or, for half precision, in float32."""
    tensor(name, value)
    if value.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {shape} for x of shape {tuple(x.shape)}")
    if value.dtype != x.dtype and not (value.dtype == torch.float32 and x.dtype in (torch.bfloat16, torch.float16)):
        or_float32 = " or torch.float32" if x.dtype in (torch.bfloat16, torch.float16) else ""
        raise TypeError(f"{name}: got dtype {value.dtype}, expected {x.dtype}{or_float32}, for x of {x.dtype}")
    if value.device != x.device:
        raise ValueError(f"{name}: got a tensor on {value.device}, expected {x.device}, where x is")


def number(name: str, value: Any, *, above: float = float("-inf")) -> None:
    """A finite number, greater than `above`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a number")
    if not above < value < float("inf"):
        raise ValueError(f"{name}: got {value}, expected a finite number" + (f" > {above:g}" if above > -1e300 else ""))


def divisor(name: str, value: Any, whole_name: str, whole: int) -> None:
    """A positive integer that divides a number of channels."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, expected an integer")
    if value < 1 or whole % value:
        raise ValueError(f"{name}: got {value}, expected a divisor of {whole_name}")


def fits(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """A result of the given shape, made from `x`, that the memory of its device could hold were it empty."""
    if torch.compiler.is_compiling():
        return  # sizes may be symbols there
    needed, there = math.prod(shape) * x.element_size(), _memory(x.device)
    if needed > there:
        raise ValueError(
            f"{name}: got shape {tuple(x.shape)}, whose result {shape} takes {needed / 2**30:.1f} GiB, "
            f"expected one that fits the {there / 2**30:.1f} GiB of {x.device}"
        )


@functools.cache
def _memory(device: torch.device) -> float:
    """Bytes of memory that a device has, as far as that can be asked."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return math.inf
