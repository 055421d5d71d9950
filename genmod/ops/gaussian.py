"""Family `gaussian`: sampling from diagonal Gaussians and their Kullback-Leibler divergence, fused.

The public functions check their arguments, draw a seed where noise is needed, and call the dispatcher; schemas, fakes
and autograd stand below them. The maths is in `genmod.reference.gaussian`, the noise in `genmod.reference.philox`.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import Tensor

from genmod import layout
from genmod.ops import _checks
from genmod.ops._library import define, differentiate, differentiate_backward
from genmod.ops._reductions import REDUCTIONS, Reduction, empty_loss, mean_over_batch
from genmod.ops._wanted import arrived, only_wanted, wanted_bits
from genmod.reference import gaussian as reference

Clamp = Literal["none", "hard", "soft"]
CLAMPS = ("none", "hard", "soft")


def reparameterize(
    mean: Tensor,
    logvar: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    clamp: Clamp = "none",
) -> Tensor:
    r"""Sample :math:`z = \mu + e^{\ell/2}\,\epsilon` from diagonal Gaussians, differentiably in :math:`\mu, \ell`.

    Noise is drawn inside the kernel from a key that comes from torch's generator (`torch.manual_seed` reproduces it),
    is the same in every backend, and is drawn again in the backward pass instead of being stored. It follows the memory
    order of `z`.

    Args:
        mean: `[B, ...]`, any rank >= 1; float32, float64, bfloat16 or float16. With `logvar` omitted, the packed
            output `[B, 2C, ...]` of an encoder, mean first; its halves are read in place.
        logvar: log-variance, with the shape, dtype and device of `mean`.
        generator: where the noise's key is drawn from; torch's default generator of the device if omitted.
        noise: :math:`\epsilon` itself, with the shape and dtype of `z`, instead of drawing it.
        clamp: of the log-variance: "none"; "hard", to [-30, 20] with no gradient outside; "soft", the same bounds with
            a gradient that fades outside.

    Returns:
        `z`, with the shape (half the channels, if packed), dtype and memory format of the mean.

    Raises:
        TypeError: not a tensor, not floating point, or dtypes that differ.
        ValueError: shapes or devices that differ, an odd number of packed channels, both `noise` and `generator`, or an
            unknown `clamp`.

    Differentiable twice, in `mean`, `logvar` and `noise`. Kept for backward: the inputs, and the 8-byte key.
    Source: Kingma and Welling, *Auto-encoding variational Bayes*, ICLR 2014.
    """
    view = _check_gaussian(mean, logvar, "mean", "logvar")
    _checks.choice("clamp", clamp, CLAMPS)
    seed = _noise_or_seed(mean, view, noise, generator)
    if _needs_plain_autograd(noise):
        return reference.reparameterize(mean, logvar, noise, seed, clamp)
    return _reparameterize(mean, logvar, noise, seed, clamp)


def gaussian_kl(
    mean: Tensor,
    logvar: Tensor | None = None,
    other_mean: Tensor | None = None,
    other_logvar: Tensor | None = None,
    *,
    free_bits: float = 0.0,
    reduction: Reduction = "batchmean",
    clamp: Clamp = "none",
) -> Tensor:
    r"""Kullback-Leibler divergence of diagonal Gaussians from the standard normal, or from second ones, in nats.

    .. math::
        \mathrm{KL} = \tfrac12\left(\operatorname{expm1}(\ell) - \ell + \mu^2\right), \qquad
        \mathrm{KL} = \tfrac12\left(\operatorname{expm1}(\ell - \ell') - (\ell - \ell')
        + (\mu - \mu')^2 e^{-\ell'}\right)

    Args:
        mean, logvar: as in :func:`reparameterize`; `logvar` omitted means that `mean` is packed.
        other_mean, other_logvar: the second Gaussian, in either form too; the standard normal if omitted.
        free_bits: floor under each element's KL, in nats; below it the gradient is zero. 0 leaves the KL as it is.
        reduction: "none", per element; "per_dim", averaged over the batch, `[...]`; "batch", summed per sample, `[B]`;
            "batchmean", that averaged over the batch; "mean", over all elements; "sum". An empty batch gives zero.
        clamp: of both log-variances, as in :func:`reparameterize`.

    Returns:
        The KL in float32, or in float64 for float64 inputs.

    Raises:
        TypeError: not a tensor, not floating point, or dtypes that differ.
        ValueError: shapes or devices that differ, an odd number of packed channels, `other_logvar` without
            `other_mean`, negative `free_bits`, or an unknown `reduction` or `clamp`.

    Differentiable twice, in all four tensors. Kept for backward: the inputs.
    Source: Kingma and Welling, ICLR 2014, appendix B; free bits: Kingma et al., NeurIPS 2016, here per element.
    """
    view = _check_gaussian(mean, logvar, "mean", "logvar")
    if other_mean is not None:
        _check_other(mean, view, other_mean, other_logvar)
    elif other_logvar is not None:
        raise ValueError(
            "other_mean: got None with other_logvar given, expected both, or the packed pair in other_mean"
        )
    _check_kl_options(free_bits, reduction, clamp)
    call = reference.gaussian_kl if _needs_plain_autograd(None) else _gaussian_kl
    if reduction == "per_dim":
        return mean_over_batch(call(mean, logvar, other_mean, other_logvar, float(free_bits), "none", clamp))
    return call(mean, logvar, other_mean, other_logvar, float(free_bits), reduction, clamp)


def sample_kl(
    mean: Tensor,
    logvar: Tensor | None = None,
    *,
    free_bits: float = 0.0,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    reduction: Reduction = "batchmean",
    clamp: Clamp = "none",
) -> tuple[Tensor, Tensor]:
    """:func:`reparameterize` and :func:`gaussian_kl` to the standard normal, in one pass forward and one backward.

    Args, errors and gradients are those of the two functions.

    Returns:
        `(z, kl)`.
    """
    view = _check_gaussian(mean, logvar, "mean", "logvar")
    _check_kl_options(free_bits, reduction, clamp)
    seed = _noise_or_seed(mean, view, noise, generator)
    call = reference.sample_kl if _needs_plain_autograd(noise) else _sample_kl
    if reduction == "per_dim":
        z, kl = call(mean, logvar, noise, seed, float(free_bits), "none", clamp)
        return z, mean_over_batch(kl)
    return call(mean, logvar, noise, seed, float(free_bits), reduction, clamp)


def clamp_logvar(logvar: Tensor, *, clamp: Clamp = "hard") -> Tensor:
    """The clamp that the ops of this family apply inside, by itself: "none", "hard" or "soft", to [-30, 20]."""
    _checks.tensor("logvar", logvar)
    _checks.choice("clamp", clamp, CLAMPS)
    return reference.clamp_logvar(logvar, clamp)


# Arguments.


def _check_gaussian(mean: Any, logvar: Any, mean_name: str, logvar_name: str) -> torch.Size:
    """Check one Gaussian; returns the shape of its mean."""
    _checks.tensor(mean_name, mean)
    if logvar is not None:
        _checks.like(logvar_name, logvar, mean_name, mean, mean.shape)
        return mean.shape
    if mean.dim() < 2 or mean.shape[1] % 2:
        raise ValueError(
            f"{mean_name}: got shape {tuple(mean.shape)} without {logvar_name}, expected a packed [B, 2C, ...] tensor "
            f"with an even number of channels, or {logvar_name} as well"
        )
    return torch.Size((mean.shape[0], mean.shape[1] // 2, *mean.shape[2:]))


def _check_other(mean: Tensor, shape: torch.Size, other_mean: Any, other_logvar: Any) -> None:
    packed = torch.Size((shape[0], shape[1] * 2, *shape[2:])) if other_logvar is None and len(shape) > 1 else shape
    _checks.like("other_mean", other_mean, "the first Gaussian", mean, packed)
    _check_gaussian(other_mean, other_logvar, "other_mean", "other_logvar")


def _check_kl_options(free_bits: Any, reduction: Any, clamp: Any) -> None:
    _checks.nonnegative("free_bits", free_bits)
    _checks.choice("reduction", reduction, REDUCTIONS)
    _checks.choice("clamp", clamp, CLAMPS)


def _noise_or_seed(
    mean: Tensor, shape: torch.Size, noise: Tensor | None, generator: torch.Generator | None
) -> Tensor | None:
    """A fresh key for the noise, unless the noise is given."""
    if noise is None:
        return torch.randint(0x7FFFFFFFFFFFFFFF, (), dtype=torch.int64, device=mean.device, generator=generator)
    if generator is not None:
        raise ValueError("generator: got one together with noise, expected one of the two")
    _checks.like("noise", noise, "mean", mean, shape)
    return None


def _needs_plain_autograd(noise: Tensor | None) -> bool:
    # Under torch.func's transforms the reference runs: it is plain ATen and right in every mode, which an opaque op is
    # not. A gradient for the noise itself is rare enough to go the same way.
    return torch._C._are_functorch_transforms_active() or (noise is not None and noise.requires_grad)


# Dispatcher ops. Every backend implements exactly these.


def _reparameterize_fake(mean, logvar, noise, seed, clamp):
    return layout.empty_output(layout.split(mean, logvar)[0])


def _gaussian_kl_fake(mean, logvar, other_mean, other_logvar, free_bits, reduction, clamp):
    return empty_loss(layout.split(mean, logvar)[0], reduction)


def _sample_kl_fake(mean, logvar, noise, seed, free_bits, reduction, clamp):
    view = layout.split(mean, logvar)[0]
    return layout.empty_output(view), empty_loss(view, reduction)


def _reparameterize_backward_fake(grad, mean, logvar, noise, seed, clamp, wanted):
    return layout.empty_gradients(mean, logvar, wanted)[0]


def _gaussian_kl_backward_fake(grad, mean, logvar, other_mean, other_logvar, free_bits, reduction, clamp, wanted):
    first = layout.empty_gradients(mean, logvar, wanted)[0]
    if other_mean is None:
        return *first, mean.new_empty(0), mean.new_empty(0)
    form = layout.memory_format_of(layout.split(mean, logvar)[0])
    return *first, *layout.empty_gradients(other_mean, other_logvar, wanted >> 2, form)[0]


def _sample_kl_backward_fake(grad_z, grad_kl, mean, logvar, noise, seed, free_bits, reduction, clamp, wanted):
    return layout.empty_gradients(mean, logvar, wanted)[0]


def _sample_kl_double_backward_fake(
    to_mean, to_logvar, grad_z, grad_kl, mean, logvar, noise, seed, free_bits, reduction, clamp, wanted
):
    view = layout.split(mean, logvar)[0]
    d_grad_z = layout.empty_output(view) if wanted & 1 and grad_z is not None else mean.new_empty(0)
    d_grad_kl = empty_loss(view, reduction) if wanted & 2 and grad_kl is not None else mean.new_empty(0)
    return d_grad_z, d_grad_kl, *layout.empty_gradients(mean, logvar, wanted >> 2)[0]


define(
    "gaussian",
    "reparameterize(Tensor mean, Tensor? logvar, Tensor? noise, Tensor? seed, str clamp) -> Tensor",
    _reparameterize_fake,
)
define(
    "gaussian",
    "reparameterize_backward(Tensor grad, Tensor mean, Tensor? logvar, Tensor? noise, Tensor? seed, str clamp, "
    "int wanted) -> (Tensor, Tensor)",
    _reparameterize_backward_fake,
)
define(
    "gaussian",
    "gaussian_kl(Tensor mean, Tensor? logvar, Tensor? other_mean, Tensor? other_logvar, float free_bits, "
    "str reduction, str clamp) -> Tensor",
    _gaussian_kl_fake,
)
define(
    "gaussian",
    "gaussian_kl_backward(Tensor grad, Tensor mean, Tensor? logvar, Tensor? other_mean, Tensor? other_logvar, "
    "float free_bits, str reduction, str clamp, int wanted) -> (Tensor, Tensor, Tensor, Tensor)",
    _gaussian_kl_backward_fake,
)
define(
    "gaussian",
    "sample_kl(Tensor mean, Tensor? logvar, Tensor? noise, Tensor? seed, float free_bits, str reduction, "
    "str clamp) -> (Tensor, Tensor)",
    _sample_kl_fake,
)
define(
    "gaussian",
    "sample_kl_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mean, Tensor? logvar, Tensor? noise, Tensor? seed, "
    "float free_bits, str reduction, str clamp, int wanted) -> (Tensor, Tensor)",
    _sample_kl_backward_fake,
)
define(
    "gaussian",
    "sample_kl_double_backward(Tensor to_mean, Tensor? to_logvar, Tensor? grad_z, Tensor? grad_kl, Tensor mean, "
    "Tensor? logvar, Tensor? noise, Tensor? seed, float free_bits, str reduction, str clamp, int wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _sample_kl_double_backward_fake,
)


# Autograd: a forward op saves its tensors and hands them to its backward op, which is differentiable itself.


def _save(ctx, *inputs):
    ctx.save_for_backward(*inputs[:4])  # tensors or None
    ctx.rest = inputs[4:]  # options


def _reparameterize_vjp(ctx, grad):
    mean, logvar, noise, seed = ctx.saved_tensors
    wanted = wanted_bits(ctx.needs_input_grad[:2])
    if grad is None or not wanted:
        return (None,) * 5
    if wanted == 1 and logvar is not None:
        return grad, None, None, None, None  # dz/dmean = 1
    grads = _reparameterize_backward(grad, mean, logvar, noise, seed, *ctx.rest, wanted)
    return *only_wanted(wanted, grads), None, None, None


def _gaussian_kl_vjp(ctx, grad):
    wanted = wanted_bits(ctx.needs_input_grad[:4])
    if grad is None or not wanted:
        return (None,) * 7
    grads = _gaussian_kl_backward(grad, *ctx.saved_tensors, *ctx.rest, wanted)
    return *only_wanted(wanted, grads), None, None, None


def _sample_kl_vjp(ctx, grad_z, grad_kl):
    wanted = wanted_bits(ctx.needs_input_grad[:2])
    if (grad_z is None and grad_kl is None) or not wanted:
        return (None,) * 7
    grads = _sample_kl_backward(grad_z, grad_kl, *ctx.saved_tensors, *ctx.rest, wanted)
    return *only_wanted(wanted, grads), *(None,) * 5


def _draw(first: int, inputs: list[Any]) -> list[Any]:
    """The inputs of a backward op with the noise in place of its seed, drawn by a kernel: in plain PyTorch that takes
    longer than all the rest. `first` is the place of the mean, behind which logvar, noise and seed stand."""
    mean, logvar, _, seed = inputs[first : first + 4]
    if seed is None or inputs[max(first - 2, 0)] is None:  # without a gradient of the sample nobody looks at the noise
        return inputs
    view = layout.split(mean, logvar)[0]
    nothing = layout.empty_output(view, torch.float64 if view.dtype == torch.float64 else torch.float32).zero_()
    noise = torch.ops.genmod.reparameterize(nothing, nothing, None, seed, "none")
    return [*inputs[: first + 2], noise, None, *inputs[first + 4 :]]


def _double_backward(grad_z, grad_kl, mean, logvar, rest, arriving, needed):
    """Gradients of `grad_z`, `grad_kl`, mean and logvar from what arrives at those that a backward op returned; None
    for one that is not needed, or does not depend on it."""
    to_mean, to_logvar = arrived(arriving, (mean, logvar))
    if to_mean is None and to_logvar is None:
        return (None,) * 4
    nothing = mean.new_zeros(()).expand(mean.shape)
    to_mean = nothing if to_mean is None else to_mean
    to_logvar = nothing if to_logvar is None and logvar is not None else to_logvar
    needs_grad_z, needs_grad_kl, needs_mean, needs_logvar = needed
    if grad_kl is None and logvar is not None:
        needs_mean = False  # the sample is linear in its mean
    wanted = wanted_bits((needs_grad_z, needs_grad_kl, needs_mean, needs_logvar))
    if not wanted:
        return (None,) * 4
    made = _sample_kl_double_backward(to_mean, to_logvar, grad_z, grad_kl, mean, logvar, *rest, wanted)
    return only_wanted(wanted, made)


def _sample_kl_double_vjp(ctx, *arriving):
    grad_z, grad_kl, mean, logvar, noise, seed = ctx.saved_tensors[:6]
    options = (noise, seed, *ctx.rest[6:-1])
    made = _double_backward(grad_z, grad_kl, mean, logvar, options, arriving, ctx.needs_input_grad[:4])
    return *made, *(None,) * 6


def _reparameterize_double_vjp(ctx, *arriving):
    grad, mean, logvar, noise, seed = ctx.saved_tensors[:5]
    needs_grad, *needs = ctx.needs_input_grad[:3]
    options = (noise, seed, 0.0, "sum", ctx.rest[5])
    d_grad, _, *made = _double_backward(grad, None, mean, logvar, options, arriving, (needs_grad, False, *needs))
    return d_grad, *made, *(None,) * 4


def _gaussian_kl_double_vjp(ctx, *arriving):
    grad, mean, logvar, other_mean = ctx.saved_tensors[:4]
    if other_mean is not None:
        return None
    options = (None, None, *ctx.rest[5:-1])
    needed = (False, *ctx.needs_input_grad[:3])
    _, *made = _double_backward(None, grad, mean, logvar, options, arriving[:2], needed)
    return *made, *(None,) * 6


_reparameterize = differentiate("reparameterize", _save, _reparameterize_vjp)
_gaussian_kl = differentiate("gaussian_kl", _save, _gaussian_kl_vjp)
_sample_kl = differentiate("sample_kl", _save, _sample_kl_vjp)
_reparameterize_backward = differentiate_backward(
    "reparameterize_backward", _reparameterize_double_vjp, prepare=functools.partial(_draw, 1)
)
_gaussian_kl_backward = differentiate_backward("gaussian_kl_backward", _gaussian_kl_double_vjp)
_sample_kl_backward = differentiate_backward(
    "sample_kl_backward", _sample_kl_double_vjp, prepare=functools.partial(_draw, 2)
)
_sample_kl_double_backward = differentiate_backward("sample_kl_double_backward", prepare=functools.partial(_draw, 4))
