"""What convolution patterns share: calling a convolution with other numbers, and activations behind a fresh result."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genmod.ops._tracing import are_differentiated
from genmod.reference import activation as reference
from genmod.swap import activations
from genmod.swap.pattern import Parts
from genmod.swap.patterns.norm_act import BATCH_NORMS

_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "silu": torch.ops.aten.silu_,
    "gelu": torch.ops.aten.gelu_,
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
}


def activate(fresh: Tensor, act: activations.Options) -> Tensor:
    """The activation of a tensor that nobody else holds: without gradients in its place."""
    if are_differentiated(fresh) or torch._C._are_functorch_transforms_active():
        return reference.apply(act.activation, fresh, act.negative_slope)
    if act.activation == "leaky_relu":
        return nn.functional.leaky_relu_(fresh, act.negative_slope)
    return _IN_PLACE[act.activation](fresh)


def folds(norm: nn.BatchNorm2d, *tensors: Tensor) -> bool:
    """Whether a batch norm may be multiplied into the convolution before it: constants, and no gradient to any."""
    return not norm.training and norm.running_mean is not None and not are_differentiated(*tensors)


def scale_and_shift(norm: nn.BatchNorm2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """In evaluation batch norm is `x * scale + shift`, per channel."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None, "asked of a batch norm without running statistics"
    scale = torch.rsqrt(var.to(dtype) + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.to(dtype)
    shift = -mean.to(dtype) * scale
    return scale, shift if norm.bias is None else shift + norm.bias.to(dtype)


def fold(conv: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution and the batch norm behind it in one, multiplied in float32 or wider."""
    weight, transposed = conv.weight, isinstance(conv, nn.ConvTranspose2d)
    wide = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(weight.device.type, enabled=False):
        scale, shift = scale_and_shift(norm, wide)
        if conv.bias is not None:
            shift = shift + conv.bias.to(wide) * scale
        if transposed:  # [Cin, Cout / groups, kH, kW]
            scaled = weight.to(wide).unflatten(0, (conv.groups, -1)) * scale.view(conv.groups, 1, -1, 1, 1)
            folded = scaled.flatten(0, 1)
        else:
            folded = weight.to(wide) * scale.view(-1, 1, 1, 1)
    return folded.to(weight.dtype), shift.to(weight.dtype)


def act_of(parts: Parts) -> activations.Options:
    """The activation at the end of a run, if there is one."""
    last = parts[-1]
    return activations.Options("identity", 0.0) if isinstance(last, BATCH_NORMS) else activations.options(last)
