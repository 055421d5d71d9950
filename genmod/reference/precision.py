"""The precision that arithmetic is done in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_NOTHING: AbstractContextManager[Any] = nullcontext()


def widen(t: Tensor) -> Tensor:
    """The dtype that arithmetic is done in: float32, or float64 for float64 inputs."""
    return t if t.dtype == torch.float64 else t.float()


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which autocast leaves convolutions and matrix products alone: what it may cast was cast before."""
    # Autocast knows no meta tensors, and entering it to turn off what is off takes as long as a small convolution.
    if not (torch._C._is_any_autocast_enabled() or torch.compiler.is_compiling()):
        return _NOTHING
    device = x.device.type
    if device == "meta" or not (torch.compiler.is_compiling() or torch.is_autocast_enabled(device)):
        return _NOTHING
    return torch.autocast(device, enabled=False)
