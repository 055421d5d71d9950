"""Where stock PyTorch normalises and activates as fast or faster, and how it is then called.

An ordinary small call on the CPU is looked at first, and for no more than what PyTorch would take and we do not:
checks of arguments take as long there as the arithmetic. What PyTorch refuses the caller checks and names. Its
functions are called without the wrappers of `torch.nn.functional`, and activate in place where nothing needs what was
before, which pays for the looking.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genmod import backends, layout
from genmod.ops._tracing import is_traced
from genmod.reference import activation as activations

# Below these many elements an ordinary call is PyTorch's. Its time in parts of our kernels', float32, two threads of an
# EPYC, group norm and SiLU: forward 0.7 at 16384 elements, 0.9 to 1.0 at 65536, 1.1 at 131072; with backward 0.7, 0.9,
# 1.0. Batch norm and ReLU: forward 0.9 at 16384, 1.3 at 32768; with backward 0.7, 0.9, and 1.1 to 1.7 at 65536.
_SMALL_GROUP_NORM = 98304
_SMALL_BATCH_NORM, _SMALL_BATCH_NORM_TRAINED = 20480, 49152
# With a residual, or scale and shift, PyTorch makes more passes.
_SMALL = 16384
# Our kernels also have a cost per plane, which planes of few pixels do not repay. Forward and backward of group norm
# and SiLU, float32, one thread, stock PyTorch's time in parts of ours: planes of 2 x 2 0.3, of 4 x 4 0.2, of 8 x 8 0.5
# to 0.7, of 16 x 16 0.9 to 1.6, whatever the batch. Batch norm and ReLU: 2 x 2 1.8 to 4 (there channels are taken
# together); 4 x 4 and 8 x 8 0.4 to 0.8 up to 131072 elements, 0.7 to 1.1 at 262144, and 1.2 to 1.5 from 524288 on.
_SMALL_PLANE = 64
_SMALL_PLANE_OF_BATCH = (9, 262144)  # pixels of a plane at least, elements at most
# On a GPU a small call waits for Python. Forward and backward on an H200, stock PyTorch's time in parts of ours: group
# norm and SiLU 0.4 to 0.6 up to two million elements, 0.6 to 0.9 at eight, 1.7 to 2.0 at 33 million; batch norm and
# ReLU 0.3 to 0.4, 0.7 to 1.0, 3.4 to 4.5. In a CUDA graph nothing waits, and ours is faster from the start.
_SMALL_ON_GPU = 1 << 22

_nn = torch._C._nn
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
    "silu": _nn.silu_,
    "gelu": _nn.gelu_,  # type: ignore[attr-defined]
}
#: In place too, but for those whose backward keeps the input.
_WITH_GRADIENTS = _IN_PLACE | {"silu": _nn.silu, "gelu": _nn.gelu}
#: Looked up once: a call of eight microseconds would spend one on looks into modules.
_FLOAT, _STRIDED, _INFINITY = torch.float32, torch.strided, math.inf
_group_norm, _batch_norm = torch.group_norm, torch.batch_norm
_transforming, _autocasting = torch._C._are_functorch_transforms_active, torch._C._is_any_autocast_enabled


def group_norm(
    x: Any, num_groups: Any, weight: Any, bias: Any, eps: Any, activation: Any, negative_slope: Any
) -> Tensor | None:
    """Group norm and activation, if the call is ordinary and small; None if it is not, or wrong."""
    try:
        if not (_is_ordinary(x, weight, bias, eps, negative_slope) and type(num_groups) is int and num_groups > 0):
            return None
        if weight is None and bias is not None:  # the backward of that fails there
            return None
        if not _is_small_group_norm(x):
            return None
        y = _group_norm(x, num_groups, weight, bias, eps, False)
        return _activate(y, activation, negative_slope)
    except (AttributeError, KeyError, RuntimeError, TypeError):
        return None


def batch_norm(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any,
    bias: Any,
    training: Any,
    momentum: Any,
    eps: Any,
    activation: Any,
    negative_slope: Any,
) -> Tensor | None:
    """Batch norm and activation, if the call is ordinary and small; None, with nothing changed, if it is not, or
    wrong."""
    try:
        if not (
            _is_ordinary(x, weight, bias, eps, negative_slope)
            and running_mean.dtype is running_var.dtype is _FLOAT
            and running_mean.is_cpu
            and running_var.is_cpu
            and weight.is_contiguous()  # the backward takes it as such
            and weight.dim() == running_mean.dim() == running_var.dim() == 1  # it asks for their number of elements
            and (bias is None or bias.dim() == 1)
            and type(momentum) is float
            and 0.0 <= momentum <= 1.0
            and activation in activations.NAMES
        ):
            return None
        if x.numel() <= x.shape[1] or not _is_small_batch_norm(x, weight):
            return None
        y = _batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps, False)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return _activate(y, activation, negative_slope)


def why(x: Tensor, parameters: tuple[Tensor, ...], *, of_batch: bool, fused: bool) -> str:
    """Why a call would be stock PyTorch's, for `genmod.explain`; empty if it would not. `fused` says that there is a
    residual, or a scale and shift."""
    weight = parameters[0] if parameters else None
    small = _is_small_batch_norm(x, weight) if of_batch else _is_small_group_norm(x)
    if small and not fused and _is_ordinary(x, weight, None, 1e-5, 0.01) and takes(x, *parameters):
        return f"stock PyTorch is as fast or faster on {tuple(x.shape)}"
    if not (is_faster(x, of_batch=of_batch) and takes(x, *parameters)):
        return ""
    bound = _SMALL_ON_GPU if x.is_cuda else _SMALL
    if x.numel() < bound:
        return f"stock PyTorch is faster below {bound} elements"
    return f"stock PyTorch is faster on planes of up to {_SMALL_PLANE} pixels"


def _is_small_group_norm(x: Tensor) -> bool:
    size = x.numel()
    return 0 < size < _SMALL_GROUP_NORM or 0 < size <= _SMALL_PLANE * x.shape[0] * x.shape[1]


def _is_small_batch_norm(x: Tensor, weight: Tensor | None) -> bool:
    size = x.numel()
    if size < _SMALL_BATCH_NORM:
        return size > 0
    trained = torch.is_grad_enabled() and (x.requires_grad or (weight is not None and weight.requires_grad))
    return (trained and size < _SMALL_BATCH_NORM_TRAINED) or _has_small_planes(x, of_batch=True)


def _is_ordinary(x: Any, weight: Any, bias: Any, eps: Any, negative_slope: Any) -> bool:
    """Whether nothing about the call is for us alone to take or to refuse, shapes aside, at which PyTorch looks."""
    return (
        not is_traced()
        and type(x) is Tensor
        and x.dtype is _FLOAT
        and x.is_cpu
        and x.layout is _STRIDED
        and 2 <= x.dim() <= 5
        and x.is_contiguous()
        and (weight is None or (weight.dtype is _FLOAT and weight.is_cpu))
        and (bias is None or (bias.dtype is _FLOAT and bias.is_cpu))
        and type(eps) is float
        and 0.0 < eps < _INFINITY
        and type(negative_slope) is float
        and -_INFINITY < negative_slope < _INFINITY
        and not _transforming()
        and not _autocasting()
        and backends.forced() is None
    )


def _activate(y: Tensor, activation: str, negative_slope: float) -> Tensor:
    """The activation of what nobody else holds: in place if no gradient is needed, or if PyTorch's backward keeps the
    result anyway. Where it keeps the input, the caller may change the result, as by a dropout in place."""
    if activation == "identity":
        return y
    if activation == "leaky_relu":
        return (_nn.leaky_relu if y.requires_grad else _nn.leaky_relu_)(y, negative_slope)
    return (_WITH_GRADIENTS if y.requires_grad else _IN_PLACE)[activation](y)


def is_faster(x: Tensor, *, of_batch: bool) -> bool:
    """Whether to take stock PyTorch: for few elements, or on the CPU few pixels, where only the time changes by it."""
    size = x.numel()
    if is_traced() or not size or not (x.is_cpu or x.is_cuda):
        return False
    if x.is_cuda:
        if size >= _SMALL_ON_GPU or torch.cuda.is_current_stream_capturing():
            return False
    elif size >= _SMALL and not (x.dtype == torch.float32 and _has_small_planes(x, of_batch)):
        return False
    # A forced backend must run, autocast would cast, and stock group norm gives channels_last up.
    if backends.forced() is not None:
        return False
    if _autocasting() and torch.is_autocast_enabled(x.device.type):
        return False
    return x.is_contiguous() or layout.memory_format_of(x) == torch.contiguous_format


def _has_small_planes(x: Tensor, of_batch: bool) -> bool:
    pixels = math.prod(x.shape[2:])
    few = pixels <= _SMALL_PLANE
    least, most = _SMALL_PLANE_OF_BATCH
    return few and (pixels >= least and x.numel() < most) if of_batch else few


def takes(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether stock PyTorch takes these parameters beside `x`: all of one dtype, and on a GPU in that of `x`, while we
    take float32 beside half precision."""
    dtype = x.dtype
    if all(p is None or p.dtype is dtype for p in parameters):
        return True
    dtypes = {p.dtype for p in parameters if p is not None}
    return len(dtypes) <= 1 and (x.device.type == "cpu" or dtypes <= {x.dtype})


def group_norm_scaled(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
) -> Tensor:
    if weight is None and bias is not None:  # its backward fails there
        weight = torch.ones_like(bias)
    y = torch.group_norm(x, num_groups, weight, bias, eps)  # F.group_norm refuses groups of one element
    if scale is None and shift is None:
        return y
    space = [1] * (x.dim() - 2)
    if scale is not None:
        y = y * (1 + scale.reshape(*scale.shape, *space))
    if shift is not None:
        y = y + shift.reshape(*shift.shape, *space)
    return y
