"""Normalisation and the activation behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genmod import ops
from genmod.nn.norm_act import batch_norm_act
from genmod.swap import activations
from genmod.swap.pattern import Parts, RunPattern

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
#: Of one pass over numbers that are summed in another order.
BOUND = "error at most twice stock's own"


def why_stock(x: Tensor, channels: int, *parameters: Tensor | None) -> str:
    """Why stock PyTorch is to compute with `x`, if it is to; it also says what is wrong with what it refuses."""
    if not 2 <= x.dim() <= 5 or x.shape[1] != channels or 0 in x.shape:
        return f"an input of shape {tuple(x.shape)}"
    if type(x) not in (Tensor, nn.Parameter) and not torch.compiler.is_compiling():
        return f"an input that is a {type(x).__name__}"
    for parameter in parameters:
        if parameter is not None and (
            parameter.device != x.device or parameter.dtype not in (x.dtype, _beside(x.dtype))
        ):
            return f"an input of {x.dtype} on {x.device} with parameters of {parameter.dtype} on {parameter.device}"
    return "" if x.is_floating_point() else f"an input of {x.dtype}"


def _beside(dtype: torch.dtype) -> torch.dtype:
    """The dtype that parameters beside an input may have too."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def group_norm(
    norm: nn.GroupNorm,
    act: activations.Options,
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    x_bias: Tensor | None = None,
) -> Tensor:
    """Group norm and activation in one pass, with a scale and shift per sample between them if there are any, and a
    bias of `x` before them; in the dtype that stock PyTorch would give."""
    x = widened(x)
    y = ops.group_norm_act(
        x,
        norm.num_groups,
        norm.weight,
        norm.bias,
        norm.eps,
        activation=act.activation,
        negative_slope=act.negative_slope,
        scale=scale,
        shift=shift,
        x_bias=None if x_bias is None else x_bias.to(x.dtype),
    )
    assert isinstance(y, Tensor), "a pair comes with a residual only"
    return y


def widened(x: Tensor) -> Tensor:
    """Autocast for CUDA computes group norm in float32 and leaves the result there."""
    wide = x.device.type == "cuda" and torch.is_autocast_enabled("cuda") and x.dtype != torch.float64
    return x.float() if wide else x


def why_not_group_norm(norm: nn.GroupNorm) -> str:
    """Why the op does not cover a group norm."""
    return "" if norm.eps > 0 else f"eps is {norm.eps}"


def why_not_batch_norm(norm: nn.BatchNorm2d) -> str:
    """Why the op does not cover a batch norm."""
    if norm.eps <= 0:
        return f"eps is {norm.eps}"
    if norm.momentum is not None and not 0 <= norm.momentum <= 1:
        return f"momentum is {norm.momentum}"
    return ""


def why_stock_batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> str:
    """Why stock PyTorch is to normalise `x`."""
    if isinstance(norm, nn.BatchNorm2d) and x.dim() != 4:
        return f"an input of shape {tuple(x.shape)}"
    if (norm.training or norm.running_mean is None) and x.numel() == norm.num_features:
        return "one value per channel in training"
    return why_stock(x, norm.num_features, norm.weight, norm.bias, norm.running_mean, norm.running_var)


def batch_norm(norm: nn.BatchNorm2d, act: activations.Options, x: Tensor) -> Tensor:
    """Batch norm and activation in one pass."""
    y = batch_norm_act(norm, x, act.activation, act.negative_slope)
    assert isinstance(y, Tensor), "a pair comes with a residual only"
    return y


def _why_stock_group_norm(parts: Parts, x: Tensor) -> str:
    norm = parts[0]
    assert isinstance(norm, nn.GroupNorm)
    return why_stock(x, norm.num_channels, norm.weight, norm.bias)


RUNS = (
    RunPattern(
        name="group_norm_act",
        parts=((nn.GroupNorm,), activations.MODULES),
        became="group norm and activation in one pass",
        exactness="reassociated",
        bound=BOUND,
        why_not=lambda parts: why_not_group_norm(parts[0]) or activations.why_not(parts[1]),
        why_stock=_why_stock_group_norm,
        call=lambda parts, x: group_norm(parts[0], activations.options(parts[1]), x),
    ),
    RunPattern(
        name="batch_norm_act",
        parts=(BATCH_NORMS, activations.MODULES),
        became="batch norm and activation in one pass",
        exactness="reassociated",
        bound=BOUND,
        why_not=lambda parts: why_not_batch_norm(parts[0]) or activations.why_not(parts[1]),
        why_stock=lambda parts, x: why_stock_batch_norm(parts[0], x),
        call=lambda parts, x: batch_norm(parts[0], activations.options(parts[1]), x),
    ),
)
