r"""Diagonal Gaussians: sampling and Kullback-Leibler divergence.

With mean :math:`\mu`, log-variance :math:`\ell` (after the clamp) and standard normal noise :math:`\epsilon`

.. math::
    z = \mu + e^{\ell/2}\,\epsilon, \qquad
    \mathrm{KL}\left(N(\mu, e^\ell)\,\|\,N(0, 1)\right) = \tfrac12\left(\operatorname{expm1}(\ell) - \ell + \mu^2\right)

    \mathrm{KL}\left(N(\mu, e^\ell)\,\|\,N(\mu', e^{\ell'})\right)
    = \tfrac12\left(\operatorname{expm1}(\ell - \ell') - (\ell - \ell') + (\mu - \mu')^2 e^{-\ell'}\right)

per element, in nats. `expm1` keeps what `1 + l - mu^2 - exp(l)` rounds away near the prior. Sources: Kingma and
Welling, *Auto-encoding variational Bayes*, 2014; free bits: Kingma et al., *Improved variational inference with inverse
autoregressive flow*, 2016, taken per element here.

Arithmetic is in float32, in float64 for float64 inputs. `z` and all gradients have the inputs' dtype; a KL is float32
(float64 for float64 inputs), since a sum over a latent does not fit bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genmod import layout
from genmod.reference import philox, reductions
from genmod.reference.precision import widen

#: Bounds of a clamped log-variance, those of the latent-diffusion code that others load checkpoints from.
LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0


def clamp_logvar(logvar: Tensor, clamp: str) -> Tensor:
    """`none`; `hard`: min(max(l, -30), 20), no gradient outside; `soft`: softplus at both ends (Chua et al. 2018),
    the identity to rounding well inside the bounds and a gradient that fades outside instead of vanishing."""
    if clamp == "hard":
        return logvar.clamp(LOGVAR_MIN, LOGVAR_MAX)
    if clamp == "soft":
        logvar = LOGVAR_MAX - _softplus(LOGVAR_MAX - logvar)
        return LOGVAR_MIN + _softplus(logvar - LOGVAR_MIN)
    return logvar


def _softplus(x: Tensor) -> Tensor:
    # F.softplus turns linear at a threshold, which costs up to e^-20 of the value; this is exact everywhere.
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype, device=x.device))


def draw_noise(mean: Tensor, noise: Tensor | None, seed: Tensor | None) -> Tensor:
    """The noise given, or the stream of `seed` laid out in the memory order of `layout.empty_output(mean)`."""
    if noise is not None:
        return widen(noise)
    assert seed is not None, "exactly one of noise and seed is given"
    flat = philox.normal(seed, mean.numel()).to(torch.float64 if mean.dtype == torch.float64 else torch.float32)
    if layout.memory_format_of(mean) == torch.contiguous_format:
        return flat.view(mean.shape)
    batch, channels, *space = mean.shape
    return flat.view(batch, *space, channels).movedim(-1, 1)


def _sample(mean: Tensor, logvar: Tensor, noise: Tensor, dtype: torch.dtype) -> Tensor:
    return (mean + (0.5 * logvar).exp() * noise).to(dtype)


def reduce(kl: Tensor, free_bits: float, reduction: str) -> Tensor:
    """Floor each element at `free_bits`, if that is positive, and sum what `reduction` says."""
    if free_bits > 0:
        kl = torch.where(kl <= free_bits, torch.full_like(kl, free_bits), kl)
    return reductions.reduce(kl, reduction)


def _kl(mean: Tensor, logvar: Tensor, free_bits: float, reduction: str) -> Tensor:
    return reduce(0.5 * (torch.expm1(logvar) - logvar + mean.square()), free_bits, reduction)


def _variance_ratio(logvar: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """`expm1(l - l')`, and the same minus `l - l'`.

    The subtraction rounds by up to half an ulp of a number that is then an exponent: 1e-6 relative at a ratio of e^20.
    What it dropped is recovered exactly (Knuth's two-sum) and put back to first order.
    """
    delta = logvar - other
    back = logvar - delta
    dropped = ((logvar - (delta + back)) + (back - other)).detach()
    growth = torch.expm1(delta)
    return growth + dropped * (growth + 1), growth - delta + dropped * growth


def _unpack(mean: Tensor, logvar: Tensor | None, clamp: str) -> tuple[Tensor, Tensor]:
    mean, logvar = layout.split(mean, logvar)
    return widen(mean), clamp_logvar(widen(logvar), clamp)


def _as_output(t: Tensor, mean: Tensor, logvar: Tensor | None) -> Tensor:
    return t.contiguous(memory_format=layout.memory_format_of(layout.split(mean, logvar)[0]))


def reparameterize(
    mean: Tensor, logvar: Tensor | None, noise: Tensor | None, seed: Tensor | None, clamp: str
) -> Tensor:
    """:math:`z = \\mu + e^{\\ell/2} \\epsilon`."""
    m, lv = _unpack(mean, logvar, clamp)
    eps = draw_noise(layout.split(mean, logvar)[0], noise, seed)
    return _as_output(_sample(m, lv, eps, mean.dtype), mean, logvar)


def gaussian_kl(
    mean: Tensor,
    logvar: Tensor | None,
    other_mean: Tensor | None,
    other_logvar: Tensor | None,
    free_bits: float,
    reduction: str,
    clamp: str,
) -> Tensor:
    """KL to the standard normal, or to a second diagonal Gaussian."""
    m, lv = _unpack(mean, logvar, clamp)
    if other_mean is None:
        kl = _kl(m, lv, free_bits, reduction)
    else:
        om, olv = _unpack(other_mean, other_logvar, clamp)
        excess = _variance_ratio(lv, olv)[1]
        kl = reduce(0.5 * (excess + (m - om).square() * (-olv).exp()), free_bits, reduction)
    return _as_output(kl, mean, logvar) if reduction == "none" else kl


def sample_kl(
    mean: Tensor,
    logvar: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    free_bits: float,
    reduction: str,
    clamp: str,
) -> tuple[Tensor, Tensor]:
    """:func:`reparameterize` and the standard-normal :func:`gaussian_kl` of the same Gaussian."""
    m, lv = _unpack(mean, logvar, clamp)
    eps = draw_noise(layout.split(mean, logvar)[0], noise, seed)
    z = _as_output(_sample(m, lv, eps, mean.dtype), mean, logvar)
    kl = _kl(m, lv, free_bits, reduction)
    return z, _as_output(kl, mean, logvar) if reduction == "none" else kl


# The gradients, with g the incoming gradient of the KL times its reduction's factor (zero where free bits bite), g_z
# that of z, and s the slope of the clamp:
#     d mean   = g_z + g mean
#     d logvar = s/2 (g_z e^(l/2) noise + g expm1(l))
# and between two Gaussians, with delta = mean - mean' and p = e^-l':
#     d mean    =  g delta p            d logvar  =  s/2 g expm1(l - l')
#     d mean'   = -g delta p            d logvar' = -s'/2 g (expm1(l - l') + delta^2 p)


# What arrives at these two, u at d mean and v at d logvar, goes back by
#     g_z: u + v s/2 e^(l/2) noise          mean:   u g
#     g:   u mean + v s/2 expm1(l)          logvar: v/2 (s' (g_z e^(l/2) noise + g expm1(l))
#                                                        + s^2 (g_z e^(l/2) noise / 2 + g e^l))


def _clamp_slope(logvar: Tensor, clamp: str) -> Tensor:
    """The derivative of :func:`clamp_logvar`."""
    if clamp == "hard":
        return torch.where((logvar < LOGVAR_MIN) | (logvar > LOGVAR_MAX), 0.0, 1.0).to(logvar.dtype)
    if clamp == "soft":
        upper = LOGVAR_MAX - _softplus(LOGVAR_MAX - logvar)
        return torch.sigmoid(LOGVAR_MAX - logvar) * torch.sigmoid(upper - LOGVAR_MIN)
    return torch.ones_like(logvar)


def _clamp_curvature(logvar: Tensor, clamp: str) -> Tensor:
    """The second derivative of :func:`clamp_logvar`."""
    if clamp != "soft":
        return torch.zeros_like(logvar)
    upper = LOGVAR_MAX - _softplus(LOGVAR_MAX - logvar)
    a, b = torch.sigmoid(LOGVAR_MAX - logvar), torch.sigmoid(upper - LOGVAR_MIN)
    # The complements by themselves: near the prior they are far below what 1 - a rounds to.
    return a * b * (a * torch.sigmoid(LOGVAR_MIN - upper) - torch.sigmoid(logvar - LOGVAR_MAX))


def _spread(grad_kl: Tensor, kl: Tensor, free_bits: float, reduction: str) -> Tensor:
    """The gradient of each element of the KL from that of the reduced one."""
    grad = reductions.spread(grad_kl, kl, reduction)
    return torch.where(kl <= free_bits, torch.zeros_like(grad), grad) if free_bits > 0 else grad


def _gradients(
    mean: Tensor, logvar: Tensor | None, d_mean: Tensor, d_logvar: Tensor, wanted: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Cast and lay out a gradient pair as the inputs came; one that is not wanted is an empty tensor."""
    form = layout.memory_format_of(like)

    def lay_out(d: Tensor, bit: int) -> Tensor:
        return d.to(mean.dtype).contiguous(memory_format=form) if wanted & bit else mean.new_empty(0)

    if logvar is None:
        return lay_out(torch.cat((d_mean, d_logvar), 1), 1), mean.new_empty(0)
    return lay_out(d_mean, 1), lay_out(d_logvar, 2)


def sample_kl_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mean: Tensor,
    logvar: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    free_bits: float,
    reduction: str,
    clamp: str,
    wanted: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`sample_kl`; either incoming gradient may be None. Bit i of `wanted` asks for gradient i."""
    view, raw = layout.split(mean, logvar)
    m, raw = widen(view), widen(raw)
    lv = clamp_logvar(raw, clamp)
    d_mean, d_logvar = torch.zeros_like(m), torch.zeros_like(lv)
    if grad_kl is not None:
        kl = 0.5 * (torch.expm1(lv) - lv + m.square())
        grad = _spread(grad_kl, kl, free_bits, reduction)
        d_mean, d_logvar = grad * m, grad * torch.expm1(lv)
    if grad_z is not None:
        grad = widen(grad_z)
        d_mean, d_logvar = d_mean + grad, d_logvar + grad * (0.5 * lv).exp() * draw_noise(view, noise, seed)
    return _gradients(mean, logvar, d_mean, 0.5 * _clamp_slope(raw, clamp) * d_logvar, wanted, view)


def sample_kl_double_backward(
    to_mean: Tensor,
    to_logvar: Tensor | None,
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mean: Tensor,
    logvar: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    free_bits: float,
    reduction: str,
    clamp: str,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `grad_z`, `grad_kl`, mean and logvar from those of what :func:`sample_kl_backward` returned. Bit i
    of `wanted` asks for gradient i; there is none of a gradient that was not given."""
    view, raw = layout.split(mean, logvar)
    u, v = (widen(t) for t in layout.split(to_mean, to_logvar))
    m, raw = widen(view), widen(raw)
    lv, slope, curvature = clamp_logvar(raw, clamp), _clamp_slope(raw, clamp), _clamp_curvature(raw, clamp)
    once, twice, d_mean = torch.zeros_like(lv), torch.zeros_like(lv), torch.zeros_like(m)
    d_grad_z = d_grad_kl = mean.new_empty(0)
    if grad_kl is not None:
        growth = torch.expm1(lv)
        kl = 0.5 * (growth - lv + m.square())
        grad = _spread(grad_kl, kl, free_bits, reduction)
        d_mean, once, twice = u * grad, grad * growth, grad * (growth + 1)
        if wanted & 2:
            back = u * m + 0.5 * slope * v * growth
            d_grad_kl = reductions.reduce(torch.where(kl <= free_bits, 0.0, back) if free_bits > 0 else back, reduction)
            d_grad_kl = _as_output(d_grad_kl, mean, logvar) if reduction == "none" else d_grad_kl
    if grad_z is not None:
        spread = (0.5 * lv).exp() * draw_noise(view, noise, seed)
        moved = widen(grad_z) * spread
        once, twice = once + moved, twice + 0.5 * moved
        if wanted & 1:
            d_grad_z = _as_output((u + 0.5 * slope * v * spread).to(mean.dtype), mean, logvar)
    d_logvar = 0.5 * v * (curvature * once + slope.square() * twice)
    return d_grad_z, d_grad_kl, *_gradients(mean, logvar, d_mean, d_logvar, wanted >> 2, view)


def reparameterize_backward(
    grad: Tensor,
    mean: Tensor,
    logvar: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    clamp: str,
    wanted: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`reparameterize`."""
    return sample_kl_backward(grad, None, mean, logvar, noise, seed, 0.0, "sum", clamp, wanted)


def gaussian_kl_backward(
    grad: Tensor,
    mean: Tensor,
    logvar: Tensor | None,
    other_mean: Tensor | None,
    other_logvar: Tensor | None,
    free_bits: float,
    reduction: str,
    clamp: str,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`gaussian_kl`, those of the second Gaussian last."""
    if other_mean is None:
        pair = sample_kl_backward(None, grad, mean, logvar, None, None, free_bits, reduction, clamp, wanted)
        return *pair, mean.new_empty(0), mean.new_empty(0)
    view, raw = layout.split(mean, logvar)
    m, raw = widen(view), widen(raw)
    om, other_raw = (widen(t) for t in layout.split(other_mean, other_logvar))
    lv, olv = clamp_logvar(raw, clamp), clamp_logvar(other_raw, clamp)
    difference, precision = m - om, (-olv).exp()
    growth, excess = _variance_ratio(lv, olv)
    square = difference.square() * precision
    kl = 0.5 * (excess + square)
    g = _spread(grad, kl, free_bits, reduction)
    d_mean = g * difference * precision
    d_logvar = 0.5 * _clamp_slope(raw, clamp) * g * growth
    d_other = -0.5 * _clamp_slope(other_raw, clamp) * g * (growth + square)
    first = _gradients(mean, logvar, d_mean, d_logvar, wanted, view)
    second = _gradients(other_mean, other_logvar, -d_mean, d_other, wanted >> 2, view)
    return *first, *second
