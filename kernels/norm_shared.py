"""What the kernels of norms and biases are told alike, and the tensors that their launchers make room for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genmod import layout
from genmod.kernels.launch import launch
from genmod.kernels.planes import SIZES as _PLANES
from genmod.kernels.planes import Cut, View

#: Sizes and strides, which kernels are not specialised for.
SIZES = [*_PLANES, "group", "members", "chunk", "channels", "samples", "scale_stride", "shift_stride", "sums_stride"]


def wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def in_a_row(p: Tensor | None) -> Tensor | None:
    """A parameter whose channels follow one another."""
    return p if p is None or p.stride(-1) == 1 else p.contiguous()


def launch_tiled(kernel: Any, how: Cut, like: Tensor, arguments: dict[str, Any]) -> None:
    launch(kernel, how.programs, how.num_warps, like, arguments | how.arguments)


def room_for_partials(like: Tensor, seen: View, how: Cut) -> Tensor:
    """Room for two numbers per sample, channel and chunk."""
    return like.new_empty((2, seen.samples, seen.channels, how.chunks), dtype=wide_dtype(like))


def activation_options(x: Tensor, activation: str, negative_slope: float) -> dict[str, Any]:
    return {"ACTIVATION": activation, "negative_slope": negative_slope, "FAST": x.element_size() == 2}


def room_for_gradients(x: Tensor, wanted: int, *parameters: Tensor | None) -> list[Tensor | None]:
    """Room for the gradients that are wanted, None for the others; bit i of `wanted` is that of gradient i."""
    rest = (
        None if p is None or not wanted >> i & 1 else torch.empty(p.shape, dtype=p.dtype, device=p.device)
        for i, p in enumerate(parameters, 1)
    )
    return [layout.empty_output(x) if wanted & 1 else None, *rest]


def filled(x: Tensor, gradients: list[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(0) if g is None else g for g in gradients)
