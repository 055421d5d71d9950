"""Group norm, batch norm and a bias, each with an activation, on a GPU, forward and backward: the family's face.

The functions have the names, arguments and results of the dispatcher's ops. For the maths see
genmod/reference/norm_act.py; for how a kernel finds its elements, kernels/planes.py. The kernels are in
kernels/norm_statistics.py, kernels/norm_elements.py, kernels/norm_sums.py, kernels/bias_act.py and
kernels/norm_double_backward.py.

Everything that is summed over space is summed per sample and channel, in chunks, by as many programs as fill the GPU
even for one sample; a second kernel adds the chunks, and channels or samples, in a fixed order. From the mean and the
squares per channel follow the statistics of a group as well as those of a batch; from the sums of dz and dz h per
channel follow all gradients but the input's, and the two averages that this one needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genmod import layout
from genmod.kernels import bias_act as _bias_act
from genmod.kernels import norm_double_backward as _double_backward
from genmod.kernels.bias_act import bias_act, bias_act_backward
from genmod.kernels.launch import launch
from genmod.kernels.norm_double_backward import norm_act_double_backward
from genmod.kernels.norm_elements import gradient_input, gradient_sums, normalisation_arguments, normalise
from genmod.kernels.norm_shared import (
    activation_options,
    filled,
    launch_tiled,
    room_for_gradients,
    room_for_partials,
    wide_dtype,
)
from genmod.kernels.norm_statistics import measure
from genmod.kernels.norm_sums import sum_groups, sum_over_channels
from genmod.kernels.planes import cut, dense, power_of_two, view

__all__ = [
    "COMPILE_CASES",
    "batch_norm_act",
    "batch_norm_act_backward",
    "bias_act",
    "bias_act_backward",
    "group_norm_act",
    "group_norm_act_backward",
    "group_norm_act_biased",
    "norm_act_double_backward",
]


def group_norm_act(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source, residual = dense(x, x, residual)
    y, total = layout.empty_output(x), None if residual is None else layout.empty_output(x)
    mean, rstd = (x.new_empty((x.shape[0], num_groups), dtype=wide_dtype(x)) for _ in range(2))
    group = x.shape[1] // num_groups
    rest = measure(source, residual, total, mean, rstd, group, eps)
    normalisation = normalisation_arguments(mean, rest, rstd, weight, bias, eps, scale=scale, shift=shift, group=group)
    normalised = source if total is None else total
    tensors = {"y": y, "total": None, "x": normalised, "x_bias": None, "residual": None}
    how = cut(view(source, True), x.element_size(), 4, reduces=False)
    launch_tiled(normalise, how, x, tensors | normalisation | activation_options(x, activation, negative_slope))
    return y, x.new_empty(0) if total is None else total, mean, rstd


def group_norm_act_biased(
    x: Tensor,
    x_bias: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
    negative_slope: float,
    keep_sum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source, residual = dense(x, x, residual)
    # A sum with a residual is written down even if nobody keeps it: what follows the statistics reads one tensor then.
    y, total = layout.empty_output(x), layout.empty_output(x) if keep_sum or residual is not None else None
    mean, rstd = (x.new_empty((x.shape[0], num_groups), dtype=wide_dtype(x)) for _ in range(2))
    group, x_bias = x.shape[1] // num_groups, x_bias.contiguous()
    rest = measure(source, residual, total, mean, rstd, group, eps, x_bias)
    normalisation = normalisation_arguments(mean, rest, rstd, weight, bias, eps, scale=scale, shift=shift, group=group)
    # What was written down is read again; else x is, with all that belongs to it.
    again = {"x": source, "x_bias": x_bias, "residual": residual}
    if total is not None:
        again = {"x": total, "x_bias": None, "residual": None}
    how = cut(view(source, True), x.element_size(), 4, reduces=False)
    kind = normalisation | activation_options(x, activation, negative_slope)
    launch_tiled(normalise, how, x, {"y": y, "total": None} | again | kind)
    return y, total if keep_sum and total is not None else x.new_empty(0), mean, rstd


def group_norm_act_backward(
    grad: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    num_groups: int,
    eps: float,
    activation: str,
    negative_slope: float,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients = room_for_gradients(x, wanted, weight, bias, scale, shift)
    dx, d_weight, d_bias, d_scale, d_shift = gradients
    x, grad, grad_sum = dense(x, x, grad, grad_sum)
    seen, group = view(x, True), x.shape[1] // num_groups
    kind = normalisation_arguments(mean, None, rstd, weight, bias, eps, scale=scale, shift=shift, group=group)
    kind |= activation_options(x, activation, negative_slope) | {"grad": grad, "x": x}
    how = cut(seen, x.element_size(), 2, reduces=True)
    sums, products = room_for_partials(x, seen, how)
    launch_tiled(gradient_sums, how, x, kind | {"sums": sums, "products": products})
    average, slant = torch.empty_like(mean), torch.empty_like(mean)
    shares: tuple[Tensor | None, Tensor | None] = (None, None)
    if d_weight is not None or d_bias is not None:
        shares = tuple(x.new_empty((2, seen.samples, seen.channels, 1), dtype=mean.dtype))
    block_c = min(power_of_two(group), 64)
    block = min(power_of_two(how.chunks), 1024 // block_c)
    arguments = {name: kind[name] for name in ("weight", "bias", "scale", "scale_stride", "group")}
    arguments |= {"d_scale": d_scale, "d_shift": d_shift, "sample_sums": shares[0], "sample_products": shares[1]}
    arguments |= {"average": average, "slant": slant, "sums": sums, "products": products}
    arguments |= {"channels": seen.channels, "chunks": how.chunks, "count": float(group * seen.space)}
    arguments |= {"WIDE": how.arguments["WIDE"], "BLOCK_C": block_c, "BLOCK": block}
    launch(sum_groups, mean.numel(), max(1, block_c * block // 256), x, arguments)
    if shares[0] is not None:
        sum_over_channels(shares, d_weight, d_bias)
    if dx is not None:
        how = cut(seen, x.element_size(), 2, reduces=False)
        launch_tiled(
            gradient_input, how, x, kind | {"dx": dx, "grad_sum": grad_sum, "average": average, "slant": slant}
        )
    return filled(x, gradients)


def batch_norm_act(
    x: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source, residual = dense(x, x, residual)
    y, total = layout.empty_output(x), None if residual is None else layout.empty_output(x)
    tensors = {"y": y, "total": total, "x": source, "x_bias": None, "residual": residual}
    mean, var = (x.new_empty(x.shape[1] if training else 0, dtype=wide_dtype(x)) for _ in range(2))
    if training:
        rest = measure(source, residual, total, mean, var, 1, eps)
        normalisation = normalisation_arguments(mean, rest, var, weight, bias, eps)
        if total is not None:
            tensors |= {"total": None, "x": total, "residual": None}
    else:
        normalisation = normalisation_arguments(running_mean, None, running_var, weight, bias, eps)
    how = cut(view(source, False), x.element_size(), 4, reduces=False)
    launch_tiled(normalise, how, x, tensors | normalisation | activation_options(x, activation, negative_slope))
    return y, x.new_empty(0) if total is None else total, mean, var


def batch_norm_act_backward(
    grad: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    activation: str,
    negative_slope: float,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = room_for_gradients(x, wanted, weight, bias)
    dx, d_weight, d_bias = gradients
    x, grad, grad_sum = dense(x, x, grad, grad_sum)
    seen = view(x, False)
    kind = normalisation_arguments(mean, None, var, weight, bias, eps)
    kind |= activation_options(x, activation, negative_slope) | {"grad": grad, "x": x}
    averages: tuple[Tensor | None, Tensor | None] = (None, None)
    if training or d_weight is not None or d_bias is not None:
        how = cut(seen, x.element_size(), 2, reduces=True)
        sums, products = room_for_partials(x, seen, how)
        launch_tiled(gradient_sums, how, x, kind | {"sums": sums, "products": products})
        if training:
            averages = tuple(x.new_empty((2, seen.channels), dtype=wide_dtype(x)))
        count = seen.samples * seen.space
        sum_over_channels((sums, products), d_weight, d_bias, averages, kind["weight"], count)
    if dx is not None:
        how = cut(seen, x.element_size(), 2, reduces=False)
        rest = {"dx": dx, "grad_sum": grad_sum, "average": averages[0], "slant": averages[1]}
        launch_tiled(gradient_input, how, x, kind | rest)
    return filled(x, gradients)


# --- What to compile ahead of time (see genmod/testing/compile_only.py).

_IMAGE = (8, 256, 64, 64)


def _case(
    op: Any,
    dtype: torch.dtype,
    *,
    shape: tuple[int, ...] = _IMAGE,
    channels_last: bool = False,
    residual: bool = False,
    modulated: bool = False,
    training: bool = True,
    activation: str = "silu",
) -> Any:
    """A call of `op` on meta tensors, with all gradients wanted."""

    def make(*sizes: int, of: torch.dtype = dtype) -> Tensor:
        last = channels_last and sizes == shape
        form = torch.channels_last if last else torch.contiguous_format
        return torch.empty(sizes, dtype=of, device="meta", memory_format=form)

    def call() -> None:
        x, channels = make(*shape), shape[1]
        other = make(*shape) if residual else None
        affine = make(channels), make(channels)
        scales = (make(shape[0], channels), make(shape[0], channels)) if modulated else (None, None)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        if op is group_norm_act:
            op(x, other, *affine, *scales, 32, 1e-5, activation, 0.2)
        elif op is group_norm_act_biased:
            op(x, make(channels), other, *affine, *scales, 32, 1e-5, activation, 0.2, residual)
        elif op is group_norm_act_backward:
            statistics = (make(shape[0], 32, of=wide) for _ in range(2))
            op(x, other, x, *affine, *scales, *statistics, 32, 1e-5, activation, 0.2, 31)
        elif op is batch_norm_act:
            statistics = (None, None) if training else (make(channels), make(channels))
            op(x, other, *statistics, *affine, training, 1e-5, activation, 0.2)
        else:
            statistics = (make(channels, of=wide) for _ in range(2))
            op(x, other, x, *affine, *statistics, training, 1e-5, activation, 0.2, 7)

    return call


#: Between them they reach every branch of every kernel.
COMPILE_CASES = {
    "group_norm_act, bfloat16": _case(group_norm_act, torch.bfloat16),
    "group_norm_act, bfloat16, channels_last": _case(group_norm_act, torch.bfloat16, channels_last=True),
    "group_norm_act, bfloat16, one image": _case(group_norm_act, torch.bfloat16, shape=(1, 128, 1024, 1024)),
    "group_norm_act, float32, everything": _case(group_norm_act, torch.float32, residual=True, modulated=True),
    "group_norm_act, float16, odd": _case(group_norm_act, torch.float16, shape=(3, 96, 7, 7), activation="tanh"),
    "group_norm_act, bfloat16, 2^32 elements": _case(group_norm_act, torch.bfloat16, shape=(32, 128, 1024, 1024)),
    "group_norm_act, float64": _case(group_norm_act, torch.float64, activation="gelu"),
    "group_norm_act_biased, bfloat16, channels_last": _case(group_norm_act_biased, torch.bfloat16, channels_last=True),
    "group_norm_act_biased, bfloat16, channels_last, residual": _case(
        group_norm_act_biased, torch.bfloat16, channels_last=True, residual=True
    ),
    "group_norm_act_biased, float64": _case(group_norm_act_biased, torch.float64),
    "group_norm_act_backward, bfloat16": _case(group_norm_act_backward, torch.bfloat16),
    "group_norm_act_backward, bfloat16, channels_last": _case(
        group_norm_act_backward, torch.bfloat16, channels_last=True
    ),
    "group_norm_act_backward, float32, everything": _case(
        group_norm_act_backward, torch.float32, residual=True, modulated=True, activation="gelu"
    ),
    "group_norm_act_backward, float64": _case(group_norm_act_backward, torch.float64, activation="tanh"),
    "batch_norm_act, float32, channels_last": _case(
        batch_norm_act, torch.float32, shape=(64, 128, 16, 16), channels_last=True, activation="relu"
    ),
    "batch_norm_act, bfloat16, evaluation, residual": _case(
        batch_norm_act, torch.bfloat16, residual=True, training=False, activation="leaky_relu"
    ),
    "batch_norm_act_backward, float32": _case(batch_norm_act_backward, torch.float32, activation="relu"),
    "batch_norm_act_backward, bfloat16, channels_last, residual": _case(
        batch_norm_act_backward, torch.bfloat16, channels_last=True, residual=True, activation="leaky_relu"
    ),
    "batch_norm_act_backward, float16, evaluation": _case(
        batch_norm_act_backward, torch.float16, training=False, activation="sigmoid"
    ),
}
COMPILE_CASES |= _bias_act.CASES | _double_backward.CASES
