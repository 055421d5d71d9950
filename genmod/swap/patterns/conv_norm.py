"""A convolution, batch norm and an activation; and a convolution with an activation only."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from genmod import ops
from genmod.nn.blocks import transposed_product
from genmod.nn.convolution import convolve, is_4x4, suits_4x4
from genmod.ops._tracing import are_differentiated
from genmod.swap import activations
from genmod.swap.pattern import Parts, RunPattern
from genmod.swap.patterns.convolutions import act_of, activate, fold, folds
from genmod.swap.patterns.norm_act import batch_norm, why_not_batch_norm, why_stock, why_stock_batch_norm

_BOUND = "error at most 1e-5 of the largest value in float32"
_HALF_BOUND = "in half precision at most 2e-2 of it"


def _why_stock(parts: Parts, x: Tensor) -> str:
    conv, norm = parts[0], parts[1]
    assert isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)) and isinstance(norm, nn.BatchNorm2d)
    if conv.out_channels != norm.num_features:
        return f"a batch norm of {norm.num_features} channels behind a convolution to {conv.out_channels}"
    return _image(conv, x)


def _image(conv: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> str:
    if x.dim() != 4:
        return f"an input of shape {tuple(x.shape)}"
    if torch.is_autocast_enabled(x.device.type):
        return ""
    return why_stock(x, conv.in_channels, conv.weight, conv.bias)


def _conv_norm(parts: Parts, x: Tensor) -> Tensor:
    conv, norm = parts[0], parts[1]
    assert isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)) and isinstance(norm, nn.BatchNorm2d)
    act, weight = act_of(parts), conv.weight
    # Folding walks over the weight some times, and saves a walk over the result.
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    result = conv.out_channels * (pixels // math.prod(conv.stride) if isinstance(conv, nn.Conv2d) else pixels)
    worth = result >= 4 * weight.numel()
    if folds(norm, x, *conv.parameters(), *norm.parameters()) and worth:
        folded, bias = fold(conv, norm)
        if is_4x4(conv) and suits_4x4(x, folded, isinstance(conv, nn.ConvTranspose2d)):
            y = ops.conv4x4(x, folded, bias, transposed=isinstance(conv, nn.ConvTranspose2d))
        elif isinstance(conv, nn.ConvTranspose2d):
            padding: Any = conv.padding
            geometry = (conv.stride, padding, conv.output_padding, conv.groups, conv.dilation)
            y = nn.functional.conv_transpose2d(x, folded, bias, *geometry)
        else:
            y = conv._conv_forward(x, folded, bias)
        return y if act.activation == "identity" else activate(y, act)
    product = transposed_product(conv, x) if isinstance(conv, nn.ConvTranspose2d) else None
    y = convolve(conv, x) if product is None else product
    if why_stock_batch_norm(norm, y):
        y = norm(y)
        return y if len(parts) == 2 else parts[2](y)
    return batch_norm(norm, act, y)


def _why_not(parts: Parts) -> str:
    return why_not_batch_norm(parts[1]) or (activations.why_not(parts[2]) if len(parts) == 3 else "")


def _run(name: str, conv: type[nn.Module], became: str, *act: tuple[type[nn.Module], ...]) -> RunPattern:
    return RunPattern(
        name=name,
        parts=((conv,), (nn.BatchNorm2d,), *act),
        became=became,
        exactness="reassociated",
        bound=f"{_BOUND}, {_HALF_BOUND}",
        allow_half="folded",
        why_not=_why_not,
        why_stock=_why_stock,
        call=_conv_norm,
    )


def _conv_act(parts: Parts, x: Tensor) -> Tensor:
    y = parts[0](x)
    return parts[1](y) if are_differentiated(y) else activate(y, activations.options(parts[1]))


def _act(name: str, *layers: type[nn.Module]) -> RunPattern:
    return RunPattern(
        name=name,
        parts=(layers, activations.MODULES),
        became="activation in place where there is no gradient",
        exactness="bit-equal",
        bound="none",
        modes="evaluation",
        why_not=lambda parts: activations.why_not(parts[1]),
        call=_conv_act,
    )


_FOLDED = "batch norm folded into the convolution in evaluation"
RUNS = (
    _run("conv_bn_act", nn.Conv2d, f"{_FOLDED}; one pass with the activation in training", activations.MODULES),
    _run("conv_bn", nn.Conv2d, f"{_FOLDED}; genmod's batch norm in training"),
    _run(
        "conv_transpose_bn_act",
        nn.ConvTranspose2d,
        f"{_FOLDED}; one pass with the activation in training; single pixels as a matrix product",
        activations.MODULES,
    ),
    _act("bias_act", nn.Conv2d, nn.ConvTranspose2d),
    _act("linear_act", nn.Linear),
)
