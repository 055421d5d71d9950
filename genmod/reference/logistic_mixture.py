r"""The discretised logistic mixture of PixelCNN++: negative log-likelihood, its gradient, and a sampler.

A pixel's value is one of `bins` equally spaced numbers in [-1, 1], `2h` apart. Each of K components is a logistic
distribution per channel; the mass of a bin is what lies within h of its value, and the two end bins reach to infinity.
With :math:`\sigma` the sigmoid, s the scale, and :math:`a = (x - \mu + h) / s`, :math:`b = (x - \mu - h) / s`,

.. math::
    \ln p = \begin{cases}
        \ln\sigma(a) & x < -1 + h \\
        \ln\sigma(-b) & x > 1 - h \\
        \ln\sigma(a) + \ln\sigma(-b) + \ln\left(1 - e^{-(a-b)}\right) & \text{otherwise}
    \end{cases}

The last line is :math:`\ln(\sigma(a) - \sigma(b))` without the subtraction: its third term depends on the scale alone.
So no bin's probability rounds to zero, and neither the floor of 1e-12 nor the switch to a density that the original
code needs is needed here; values and gradients stay finite however far a mean is off.

In RGB the means of green and blue are shifted by multiples, `tanh` of the coefficients, of the channels before:

.. math::
    \mu_G = m_G + c_R\,x_R, \qquad \mu_B = m_B + c_G\,x_R + c_B\,x_G

and :math:`-\ln p(x) = -\ln \sum_k \pi_k \prod_c p_{ck}(x_c)`. The layout of the parameters is in
:func:`genmod.ops.logistic_mixture_nll`. Source: Salimans, Karpathy, Chen and Kingma, *PixelCNN++*, ICLR 2017.

Arithmetic is in float32, in float64 for float64 parameters, and so is the result.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from genmod import layout
from genmod.reference import philox
from genmod.reference.reductions import reduce, spread


def parameters_per_component(channels: int) -> int:
    """A logit, and for each channel a mean, a log-scale and, in RGB, a coefficient."""
    return 10 if channels == 3 else 3


class _Parameters(NamedTuple):
    logits: Tensor  # [B, K, H, W]
    means: Tensor  # [B, C, K, H, W], before the shifts
    log_scales: Tensor  # the same, before the lower bound
    coefficients: Tensor | None  # the same, before tanh


def _unpack(output: Tensor, channels: int) -> _Parameters:
    wide = output if output.dtype == torch.float64 else output.float()
    count = output.shape[1] // parameters_per_component(channels)
    # Literals, because `channels` may be symbolic.
    rest = wide[:, count:].unflatten(1, (3, 3, count) if channels == 3 else (1, 2, count))
    return _Parameters(wide[:, :count], rest[:, :, 0], rest[:, :, 1], rest[:, :, 2] if channels == 3 else None)


def _shifted(means: Tensor, c: Tensor | None, x: Tensor) -> Tensor:
    """Means after the shifts; `x` is [B, C, 1, H, W], `c` the tanh of the coefficients."""
    if c is None:
        return means
    green = means[:, 1] + c[:, 0] * x[:, 0]
    blue = means[:, 2] + c[:, 1] * x[:, 0] + c[:, 2] * x[:, 1]
    return torch.stack((means[:, 0], green, blue), 1)


class _Bin(NamedTuple):
    """The bin of the target under each component, [B, C, K, H, W] each."""

    a: Tensor
    b: Tensor
    width: Tensor  # a - b, positive
    inverse_scale: Tensor
    log_scale: Tensor
    lowest: Tensor  # [B, C, 1, H, W]
    highest: Tensor


def _bin(p: _Parameters, x: Tensor, bins: int, min_log_scale: float) -> _Bin:
    h = 1.0 / (bins - 1)
    c = None if p.coefficients is None else p.coefficients.tanh()
    log_scale = p.log_scales.clamp(min=min_log_scale)
    inverse = (-log_scale).exp()
    centred = x - _shifted(p.means, c, x)
    # A scale so large that the width underflows leaves the ratios below at their limit.
    width = (2 * h * inverse).clamp(min=1e-30)
    return _Bin(inverse * (centred + h), inverse * (centred - h), width, inverse, log_scale, x < h - 1, x > 1 - h)


def _log_probability(bin: _Bin, bins: int) -> Tensor:
    """ln p per channel and component."""
    lower, upper = torch.nn.functional.logsigmoid(bin.a), torch.nn.functional.logsigmoid(-bin.b)
    # ln(1 - e^-w) = ln(2h) - ln s + ln((1 - e^-w) / w): finite for every scale.
    inside = math.log(2 / (bins - 1)) - bin.log_scale + (-torch.expm1(-bin.width) / bin.width).log()
    return torch.where(bin.lowest, lower, torch.where(bin.highest, upper, lower + upper + inside))


def _kept(output: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """With zeros at the pixels of weight zero, so that what stands there does not matter, not even a NaN."""
    if weight is None:
        return output, target
    kept = (weight != 0).unsqueeze(1)
    return torch.where(kept, output, 0.0), torch.where(kept, target, 0.0)


def _wide_target(target: Tensor, output: Tensor) -> Tensor:
    return target.to(torch.float64 if output.dtype == torch.float64 else torch.float32).unsqueeze(2)


def logistic_mixture_nll(
    output: Tensor, target: Tensor, weight: Tensor | None, reduction: str, bins: int, min_log_scale: float
) -> Tensor:
    """:math:`-\\ln p` of each pixel, times its weight, reduced. `weight` is [B, H, W]."""
    output, target = _kept(output, target, weight)
    p = _unpack(output, target.shape[1])
    bin = _bin(p, _wide_target(target, output), bins, min_log_scale)
    joint = p.logits.log_softmax(1) + _log_probability(bin, bins).sum(1)
    nll = -joint.logsumexp(1)
    return reduce(nll if weight is None else nll * weight, reduction)


def _spread(grad: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """The gradient of each pixel's nll, [B, H, W], from that of the reduced one."""
    grad = spread(grad, target[:, 0], reduction)
    return grad if weight is None else grad * weight


# The gradients. With posterior weights w_k, prior weights pi_k, and g that of the pixel,
#     d logit_k = g (pi_k - w_k)
#     d mean    = -g w_k (sigma(b) - sigma(-a)) / s
#     d ln s    = -g w_k (b sigma(b) - a sigma(-a) - v / (e^v - 1)),  v = a - b
# without sigma(b) in the lowest bin, without sigma(-a) in the highest, and with the last term in the bins between only.
# Where the bound holds a log-scale, its gradient is zero.


def logistic_mixture_nll_backward(
    grad: Tensor,
    output: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    bins: int,
    min_log_scale: float,
) -> Tensor:
    """The gradient of `output`, in its dtype and memory format."""
    form, dtype = layout.memory_format_of(output), output.dtype
    output, target = _kept(output, target, weight)
    p, x = _unpack(output, target.shape[1]), _wide_target(target, output)
    bin = _bin(p, x, bins, min_log_scale)
    g = _spread(grad, target, weight, reduction).unsqueeze(1)
    prior = p.logits.log_softmax(1)
    posterior = (prior + _log_probability(bin, bins).sum(1)).softmax(1)
    d_logits = g * (prior.exp() - posterior)

    above = torch.where(bin.highest, 0.0, torch.sigmoid(-bin.a))
    below = torch.where(bin.lowest, 0.0, torch.sigmoid(bin.b))
    ratio = bin.width * (-bin.width).exp() / -torch.expm1(-bin.width)
    ratio = torch.where(bin.lowest | bin.highest, 0.0, ratio)
    scaled, impossible = (-g * posterior).unsqueeze(1), (posterior == 0).unsqueeze(1)
    # A component that cannot have made the pixel, its mean infinitely far away for one, has no gradient, 0 times that.
    d_means = torch.where(impossible, 0.0, scaled * bin.inverse_scale * (below - above))
    d_log_scales = scaled * (bin.b * below - bin.a * above - ratio)
    d_log_scales = torch.where(impossible | (p.log_scales < min_log_scale), 0.0, d_log_scales)
    parts = [d_means, d_log_scales]
    if p.coefficients is not None:
        c = p.coefficients.tanh()
        green, blue = d_means[:, 1], d_means[:, 2]
        shifted = torch.stack((green * x[:, 0], blue * x[:, 0], blue * x[:, 1]), 1)
        parts.append((1 - c.square()) * shifted)
    gradient = torch.cat((d_logits, torch.stack(parts, 2).flatten(1, 3)), 1)
    return gradient.to(dtype).contiguous(memory_format=form)


def logistic_mixture_nll_with_gradient(
    output: Tensor, target: Tensor, weight: Tensor | None, reduction: str, bins: int, min_log_scale: float
) -> tuple[Tensor, Tensor]:
    """A loss that is one number, and its gradient: :func:`logistic_mixture_nll_backward` of an incoming one."""
    inputs = (output, target, weight, reduction, bins, min_log_scale)
    loss = logistic_mixture_nll(*inputs)
    return loss, logistic_mixture_nll_backward(torch.ones_like(loss), *inputs)


def logistic_mixture_sample(
    output: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    channels: int,
    bins: int | None,
    min_log_scale: float,
    temperature: float,
) -> Tensor:
    """A sample, [B, C, H, W]: a component by the Gumbel-max trick, then each channel by inverting its distribution."""
    p = _unpack(output, channels)
    count = p.logits.shape[1]
    uniform = _uniforms(output, count + channels, noise, seed)
    gumbel = -(-uniform[:, :count].log()).log()
    chosen = (p.logits / temperature + gumbel).argmax(1, keepdim=True)

    def of_chosen(t: Tensor) -> Tensor:
        return t.gather(2, chosen.unsqueeze(1).expand(-1, channels, -1, -1, -1)).squeeze(2)

    means, log_scales = of_chosen(p.means), of_chosen(p.log_scales).clamp(min=min_log_scale)
    spread = temperature * log_scales.exp() * torch.logit(uniform[:, count:])

    def settle(value: Tensor) -> Tensor:
        value = value.clamp(-1, 1)
        return value if bins is None else ((value + 1) * ((bins - 1) / 2)).round() * (2 / (bins - 1)) - 1

    values = [settle(means[:, 0] + spread[:, 0])]
    if p.coefficients is not None:
        c = of_chosen(p.coefficients).tanh()
        values.append(settle(means[:, 1] + c[:, 0] * values[0] + spread[:, 1]))
        values.append(settle(means[:, 2] + c[:, 1] * values[0] + c[:, 2] * values[1] + spread[:, 2]))
    form = layout.memory_format_of(output)
    return torch.stack(values, 1).to(output.dtype).contiguous(memory_format=form)


def _uniforms(output: Tensor, planes: int, noise: Tensor | None, seed: Tensor | None) -> Tensor:
    dtype = torch.float64 if output.dtype == torch.float64 else torch.float32
    batch, _, height, width = output.shape
    if noise is not None:
        return noise.to(dtype)
    assert seed is not None, "exactly one of noise and seed is given"
    flat = philox.uniform(seed, batch * planes * height * width).to(dtype)
    return flat.view(batch, planes, height, width)
