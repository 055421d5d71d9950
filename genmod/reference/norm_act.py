r"""Normalisation and activation: group norm, batch norm, and a bias alone.

With :math:`s = x + r` (`residual`; :math:`s = x` without), its mean :math:`\mu` and its variance :math:`v` (the biased
one, over a sample's group of channels, or over a channel of the batch)

.. math::
    h = (s - \mu)\,\rho, \quad \rho = (v + \epsilon)^{-1/2}, \qquad
    z = (h\,\gamma + \beta)\,(1 + \text{scale}) + \text{shift}, \qquad
    y = \operatorname{act}(z)

and, for :func:`bias_act`, :math:`y = \operatorname{clamp}(\text{gain}\cdot\operatorname{act}(x + \beta))`.

The variance is that of the differences from the mean, and so are the differences themselves centred once more: both
survive a mean much larger than the spread.
Arithmetic is in float32, in float64 for float64 inputs; statistics are returned in that. What is normalised is `s` as
returned, in the dtype of `x`. Sources: Wu and He, *Group normalization*, ECCV 2018; Ioffe and Szegedy, *Batch
normalization*, ICML 2015; Dhariwal and Nichol, *Diffusion models beat GANs on image synthesis*, NeurIPS 2021 (scale and
shift per sample); Karras et al., *Analyzing and improving the image quality of StyleGAN*, CVPR 2020 (`bias_act`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genmod import layout
from genmod.reference import activation as act
from genmod.reference.precision import widen


def _lay_out(t: Tensor, like: Tensor) -> Tensor:
    """`t` in the dtype and memory format that results made from `like` have."""
    return t.to(like.dtype).contiguous(memory_format=layout.memory_format_of(like))


def _along_channels(p: Tensor, like: Tensor) -> Tensor:
    """`[C]` or `[N, C]` against `[N, C, ...]`."""
    return p.reshape(*(p.shape if p.dim() == 2 else (1, *p.shape)), *[1] * (like.dim() - 2))


def _space(t: Tensor) -> tuple[int, ...]:
    return tuple(range(2, t.dim()))


def _sum_over_space(t: Tensor) -> Tensor:
    return t.sum(_space(t)) if t.dim() > 2 else t


def _residual_sum(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """What is normalised, and the same as an output: an empty tensor if there is no residual."""
    if residual is None:
        return x, x.new_empty(0)
    total = _lay_out(widen(x) + widen(residual), x)
    return total, total


def _modulated(
    h: Tensor, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """:math:`h \\gamma + \\beta` and :math:`z`."""
    inner = h
    if weight is not None:
        inner = inner * _along_channels(widen(weight), h)
    if bias is not None:
        inner = inner + _along_channels(widen(bias), h)
    z = inner
    if scale is not None:
        z = z * (1 + _along_channels(widen(scale), h))
    if shift is not None:
        z = z + _along_channels(widen(shift), h)
    return inner, z


def _gradient(value: Callable[[], Tensor], like: Tensor | None, x: Tensor, wanted: int, bit: int) -> Tensor:
    """A parameter's gradient in its dtype; an empty tensor if it is not wanted."""
    return value().to(like.dtype) if like is not None and wanted & bit else x.new_empty(0)


def _centred(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Differences from the mean, and the mean, which keeps its dimensions. A mean rounded to float32 is off by more
    than the rounding of the differences; the mean of the differences is what is missing. But for the rounding that is
    zero, whatever x is, so there is nothing to differentiate."""
    mean = x.mean(dims, keepdim=True)
    rest = x - mean
    missing = rest.detach().mean(dims, keepdim=True)
    return rest - missing, mean + missing


# Group norm.


def _by_group(t: Tensor, num_groups: int) -> Tensor:
    """`[N, C, ...]` as `[N, groups, elements]`."""
    return t.reshape(t.shape[0], num_groups, math.prod(t.shape[1:]) // num_groups)


def _normalised_by_group(x: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """`h`, and the mean and :math:`\\rho` of each group, `[N, groups]`."""
    centred, mean = _centred(_by_group(x, num_groups), (2,))
    rstd = (centred.square().mean(2) + eps).rsqrt()
    return (centred * rstd.unsqueeze(2)).reshape(x.shape), mean.squeeze(2), rstd


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
    """`(y, s, mean, rstd)`, the statistics `[N, groups]`; `s` is an empty tensor without a residual."""
    total, returned = _residual_sum(x, residual)
    wide = widen(total)
    h, mean, rstd = _normalised_by_group(wide, num_groups, eps)
    _, z = _modulated(h, weight, bias, scale, shift)
    return _lay_out(act.apply(activation, z, negative_slope), x), returned, mean, rstd


# The gradients, with g that of y, g_s that of s, and [.] the mean over a group:
#     dz = g act'(z)                   d shift = sum dz            d scale = sum dz (h gamma + beta)
#     da = dz (1 + scale)              d beta  = sum da            d gamma = sum da h
#     dh = da gamma                    d s     = rho (dh - [dh] - h [dh h]) + g_s
# d s is the gradient of x and of the residual.


def biased_sum(x: Tensor, x_bias: Tensor, residual: Tensor | None) -> Tensor:
    """What :func:`group_norm_act_biased` normalises, in the dtype of `x`."""
    total = widen(x) + _along_channels(widen(x_bias), x)
    return _lay_out(total if residual is None else total + widen(residual), x)


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
    """:func:`group_norm_act` of `x` with a bias per channel. The sum is an output if `keep_sum`, else it is empty."""
    total = biased_sum(x, x_bias, residual)
    rest = weight, bias, scale, shift, num_groups, eps, activation, negative_slope
    y, _, mean, rstd = group_norm_act(total, None, *rest)
    return y, total if keep_sum else x.new_empty(0), mean, rstd


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
    """Gradients of :func:`group_norm_act` for `(x, weight, bias, scale, shift)`, where `x` is what was normalised.

    Bit i of `wanted` asks for gradient i. `mean` and `rstd` are there for kernels; here they are computed from `x`
    again, because they are functions of it, and second derivatives have to see that.
    """
    wide = widen(x)
    h, _, rstd = _normalised_by_group(wide, num_groups, eps)
    inner, z = _modulated(h, weight, bias, scale, shift)
    dz = widen(grad) * act.slope(activation, z, negative_slope)
    da = dz if scale is None else dz * (1 + _along_channels(widen(scale), dz))
    dims = (0, *_space(da))
    to_parameters = (
        _gradient(lambda: (da * h).sum(dims), weight, x, wanted, 2),
        _gradient(lambda: da.sum(dims), bias, x, wanted, 4),
        _gradient(lambda: _sum_over_space(dz * inner), scale, x, wanted, 8),
        _gradient(lambda: _sum_over_space(dz), shift, x, wanted, 16),
    )
    if not wanted & 1:
        return x.new_empty(0), *to_parameters
    dh = da if weight is None else da * _along_channels(widen(weight), da)
    by_group, by_h = _by_group(dh, num_groups), _by_group(h, num_groups)
    dx = by_group - by_group.mean(2, keepdim=True) - by_h * (by_group * by_h).mean(2, keepdim=True)
    dx = (dx * rstd.unsqueeze(2)).reshape(x.shape)
    if grad_sum is not None:
        dx = dx + widen(grad_sum)
    return _lay_out(dx, x), *to_parameters


# Batch norm.


def _normalised_by_channel(
    x: Tensor, mean: Tensor | None, var: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`h`, and the :math:`\\rho` (against `h`), mean and variance of each channel; those given, or the batch's own."""
    if mean is None or var is None:
        dims = (0, *_space(x))
        centred, mean = _centred(x, dims)
        mean, var = mean.reshape(-1), centred.square().mean(dims)
    else:
        mean, var = widen(mean), widen(var)
        centred = x - _along_channels(mean, x)
    rho = _along_channels((var + eps).rsqrt(), x)
    return centred * rho, rho, mean, var


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
    """`(y, s, mean, var)`: in training the batch's statistics `[C]`, the variance biased; in evaluation, which uses the
    running ones, empty tensors. Nothing is written to. `s` is an empty tensor without a residual."""
    total, returned = _residual_sum(x, residual)
    wide = widen(total)
    h, _, mean, var = _normalised_by_channel(wide, *((None, None) if training else (running_mean, running_var)), eps)
    if not training:
        mean, var = wide.new_empty(0), wide.new_empty(0)
    _, z = _modulated(h, weight, bias, None, None)
    return _lay_out(act.apply(activation, z, negative_slope), x), returned, mean, var


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
    """Gradients of :func:`batch_norm_act` for `(x, weight, bias)`, where `x` is what was normalised.

    `mean` and `var` are the statistics that were used; those of the batch are computed from `x` again, as in
    :func:`group_norm_act_backward`. In evaluation they are constants, and :math:`d s = \\rho\\, dh + g_s`.
    """
    wide = widen(x)
    statistics = (None, None) if training else (mean, var)
    h, rho, _, _ = _normalised_by_channel(wide, statistics[0], statistics[1], eps)
    _, z = _modulated(h, weight, bias, None, None)
    dz = widen(grad) * act.slope(activation, z, negative_slope)
    dims = (0, *_space(dz))
    to_parameters = (
        _gradient(lambda: (dz * h).sum(dims), weight, x, wanted, 2),
        _gradient(lambda: dz.sum(dims), bias, x, wanted, 4),
    )
    if not wanted & 1:
        return x.new_empty(0), *to_parameters
    dh = dz if weight is None else dz * _along_channels(widen(weight), dz)
    if training:
        dh = dh - dh.mean(dims, keepdim=True) - h * (dh * h).mean(dims, keepdim=True)
    dx = dh * rho
    if grad_sum is not None:
        dx = dx + widen(grad_sum)
    return _lay_out(dx, x), *to_parameters


# What arrives at the gradients (u at d s, and at those of the parameters) goes back. With the means [.] over what the
# statistics are over, p = [u], q = [u h], m = [dh h], a = gamma (1 + scale), and what arrives at the parameters' as
#     A = (1 + scale) u_gamma + u_scale gamma,    B = (1 + scale) u_beta + u_scale beta + u_shift,
#     K = rho a (u - p - h q) + A h + B           what arrives at dz
#     d g = K act'(z)                             Z = K g act''(z), which arrives at z
#     W = rho (Z a + dz (A - rho a q) - rho m u)
#     d s = W - [W] - h ([W h] + rho^2 ([u dh] - p [dh] - q m))
# and for the parameters, with t = rho (u - p - h q) dz:
#     d gamma = sum (1 + scale) (t + Z h) + u_scale dz h,    d beta  = sum (1 + scale) Z + u_scale dz
#     d scale = sum gamma t + u_gamma dz h + u_beta dz + Z (h gamma + beta),    d shift = sum Z
# Where the statistics are given, every mean is zero.


def norm_act_double_backward(
    to_x: Tensor | None,
    to_weight: Tensor | None,
    to_bias: Tensor | None,
    to_scale: Tensor | None,
    to_shift: Tensor | None,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    over: str,
    num_groups: int,
    eps: float,
    activation: str,
    negative_slope: float,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for `(grad, x, weight, bias, scale, shift)` from those of what :func:`group_norm_act_backward` (`over`
    "group") or :func:`batch_norm_act_backward` ("batch"; "nothing": with given statistics) returned; what arrives may
    be None. Bit i of `wanted` asks for gradient i. Statistics are computed from `x` again, if they are functions of it.
    """
    wide, dims = widen(x), (0, *_space(x))
    if over == "group":
        h, _, by_group = _normalised_by_group(wide, num_groups, eps)
        rho = by_group.unsqueeze(2).expand(_by_group(wide, num_groups).shape).reshape(x.shape)
    elif over == "batch":
        h, rho, _, _ = _normalised_by_channel(wide, None, None, eps)
    else:
        rho = _along_channels(widen(rstd), wide)
        h = (wide - _along_channels(widen(mean), wide)) * rho

    def average(t: Tensor) -> Tensor:
        if over == "group":
            grouped = _by_group(t, num_groups)
            return grouped.mean(2, keepdim=True).expand(grouped.shape).reshape(x.shape)
        return t.mean(dims, keepdim=True) if over == "batch" else torch.zeros_like(t)

    def along(p: Tensor | None, otherwise: float) -> Tensor:
        return wide.new_full((), otherwise) if p is None else _along_channels(widen(p), wide)

    gamma, beta, growth = along(weight, 1.0), along(bias, 0.0), 1 + along(scale, 0.0)
    u_gamma, u_beta, u_scale = along(to_weight, 0.0), along(to_bias, 0.0), along(to_scale, 0.0)
    by_h, by_one = growth * u_gamma + u_scale * gamma, growth * u_beta + u_scale * beta + along(to_shift, 0.0)
    u = torch.zeros_like(wide) if to_x is None else widen(to_x)
    inner, z = _modulated(h, weight, bias, scale, shift)
    g, gain = widen(grad), gamma * growth
    slope = act.slope(activation, z, negative_slope)
    dz = g * slope
    dh = dz * gain
    p, q, m = average(u), average(u * h), average(dh * h)
    projected = rho * (u - p - h * q)
    arriving = gain * projected + by_h * h + by_one
    bent = arriving * g * act.curvature(activation, z)

    def of_x() -> Tensor:
        w = rho * (bent * gain + dz * (by_h - rho * gain * q) - rho * m * u)
        if over == "nothing":
            return w
        return w - average(w) - h * (average(w * h) + rho.square() * (average(u * dh) - p * average(dh) - q * m))

    turned = projected * dz
    return (
        _lay_out(arriving * slope, x) if wanted & 1 else x.new_empty(0),
        _lay_out(of_x(), x) if wanted & 2 else x.new_empty(0),
        _gradient(lambda: (growth * (turned + bent * h) + u_scale * dz * h).sum(dims), weight, x, wanted, 4),
        _gradient(lambda: (growth * bent + u_scale * dz).sum(dims), bias, x, wanted, 8),
        _gradient(
            lambda: _sum_over_space(gamma * turned + (u_gamma * h + u_beta) * dz + bent * inner), scale, x, wanted, 16
        ),
        _gradient(lambda: _sum_over_space(bent), shift, x, wanted, 32),
    )


# A bias alone. A clamp of infinity is none.


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    wide = widen(x)
    return wide if bias is None else wide + _along_channels(widen(bias), wide)


def bias_act(
    x: Tensor, bias: Tensor | None, activation: str, negative_slope: float, gain: float, clamp: float
) -> Tensor:
    """:math:`y = \\operatorname{clamp}(\\text{gain}\\cdot\\operatorname{act}(x + \\beta))`, to [-clamp, clamp]."""
    y = gain * act.apply(activation, _biased(x, bias), negative_slope)
    return _lay_out(y.clamp(-clamp, clamp), x)


def bias_act_backward(
    grad: Tensor,
    x: Tensor,
    bias: Tensor | None,
    activation: str,
    negative_slope: float,
    gain: float,
    clamp: float,
    wanted: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`bias_act` for `(x, bias)`: :math:`dx = \\text{gain}\\, g \\operatorname{act}'(x + \\beta)`,
    zero where the clamp cut, and its sum over all but the channels."""
    z = _biased(x, bias)
    y = gain * act.apply(activation, z.detach(), negative_slope)
    dz = widen(grad) * (gain * act.slope(activation, z, negative_slope))
    dz = torch.where(y.abs() > clamp, torch.zeros_like(dz), dz)
    return (
        _lay_out(dz, x) if wanted & 1 else x.new_empty(0),
        _gradient(lambda: dz.sum((0, *_space(dz))), bias, x, wanted, 2),
    )
