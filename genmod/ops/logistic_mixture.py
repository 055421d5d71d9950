"""Family `logistic_mixture`: the discretised logistic mixture likelihood of PixelCNN++, fused, and its sampler.

The maths is in `genmod.reference.logistic_mixture`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genmod import layout
from genmod.ops import _checks
from genmod.ops._library import define, differentiate, differentiate_backward, differentiate_in_one_pass
from genmod.ops._reductions import REDUCTIONS, Reduction, mean_over_batch, one_pass_is_cheaper
from genmod.reference import logistic_mixture as reference
from genmod.reference import reductions

CHANNELS = (1, 3)

#: Below it a scale's inverse, cubed, leaves float32.
_LOWEST_LOG_SCALE = -20.0


def logistic_mixture_nll(
    output: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "batchmean",
    bins: int = 256,
    min_log_scale: float = -7.0,
    validate: bool = False,
) -> Tensor:
    r"""Negative log-likelihood of images under a discretised logistic mixture per pixel, in nats.

    .. math::
        -\ln \sum_k \pi_k \prod_c \left[\sigma\left(\tfrac{x_c + h - \mu_{ck}}{s_{ck}}\right)
        - \sigma\left(\tfrac{x_c - h - \mu_{ck}}{s_{ck}}\right)\right], \qquad h = \frac{1}{\text{bins} - 1}

    with the first sigmoid taken as 1 in the highest bin (:math:`x > 1 - h`) and the second as 0 in the lowest
    (:math:`x < -1 + h`). The difference is computed without subtracting: no probability rounds to zero, no floor or
    density is put in its place, and values and gradients are finite for saturated components and extreme logits.

    **Layout of the parameters**, that of PixelCNN++. RGB, `output` of `10 K` channels: `K` mixture logits; then for
    each of red, green and blue `K` means, `K` log-scales and `K` coefficients. `tanh` of the coefficients of the red
    block times :math:`x_R` is added to green's means; of the green block times :math:`x_R`, and of the blue block
    times :math:`x_G`, to blue's means. One channel, `output` of `3 K` channels: `K` logits, `K` means, `K` log-scales.

    Args:
        output: `[B, 10 K, H, W]` or `[B, 3 K, H, W]`, a decoder's raw output: float32, float64, bfloat16 or float16.
        target: `[B, 3, H, W]` or `[B, 1, H, W]`, images in [-1, 1] on `bins` equally spaced values; of any of these
            dtypes, whatever that of `output` (bfloat16 is off by up to a quarter of a bin of 256). It is data: no
            gradient flows to it.
        weight: of each pixel's term, broadcast to `[B, H, W]`. A pixel of weight 0 adds 0 whatever stands there.
        mask: bool, broadcast to `[B, H, W]`; False is weight 0.
        reduction: "none", per pixel, `[B, H, W]`; "per_dim", averaged over the batch, `[H, W]`; "batch", summed per
            sample, `[B]`; "batchmean", that averaged over the batch; "mean", over all pixels, masked ones counted;
            "sum". An empty batch gives zero. Divide a pixel's nats by `C ln 2` for bits per dimension.
        bins: how many values a channel can take.
        min_log_scale: lower bound of the log-scales; where it holds, their gradient is zero.
        validate: check that every kept target lies on a bin. On a GPU that waits for the device.

    Returns:
        The loss in float32, or in float64 for a float64 `output`.

    Raises:
        TypeError: not a tensor, not floating point, or a `mask` that is not bool.
        ValueError: shapes or devices that do not fit, a number of output channels that is no multiple of 10 (RGB) or 3,
            fewer than 2 bins, `min_log_scale` below -20, an unknown `reduction`, or, with `validate`, a target off the
            bins.

    Differentiable twice in `output`, and in `weight`. Kept for backward: the inputs, and weight and mask as one tensor;
    on the CPU also the gradient, where the loss is one number in float32 or float64: it comes out of the same pass.
    Source: Salimans, Karpathy, Chen and Kingma, *PixelCNN++*, ICLR 2017.
    """
    _check(output, target, bins, min_log_scale)
    _checks.choice("reduction", reduction, REDUCTIONS)
    target = target.detach()
    pixels = torch.Size((output.shape[0], *output.shape[2:]))
    if weight is not None and weight.requires_grad:
        # Its gradient is the loss itself: plain PyTorch around the op is as good as any kernel.
        nll = logistic_mixture_nll(output, target, mask=mask, reduction="none", bins=bins, min_log_scale=min_log_scale)
        _checks.broadcastable("weight", weight, "output", output, pixels)
        nll = nll * weight.to(nll.dtype)
        return mean_over_batch(nll) if reduction == "per_dim" else reductions.reduce(nll, reduction)
    combined = _combine(weight, mask, output, pixels)
    if validate:
        _check_support(target, combined, bins)
    if torch._C._are_functorch_transforms_active():
        call = reference.logistic_mixture_nll
    else:
        call = _with_gradient if one_pass_is_cheaper(reduction, output) else _logistic_mixture_nll
    if reduction == "per_dim":
        return mean_over_batch(call(output, target, combined, "none", bins, float(min_log_scale)))
    return call(output, target, combined, reduction, bins, float(min_log_scale))


def logistic_mixture_sample(
    output: Tensor,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    channels: int = 3,
    bins: int | None = 256,
    min_log_scale: float = -7.0,
    temperature: float = 1.0,
) -> Tensor:
    r"""Draw images from the mixture that :func:`logistic_mixture_nll` scores. No gradient.

    A component is chosen per pixel (Gumbel-max), then red, green and blue in turn, each rounded to its bin before the
    next one's mean is shifted by it: exactly the distribution of the likelihood. Plain PyTorch on every device: it
    runs once per image, not per training step. Noise comes from a key drawn from torch's generator and is the same on
    every device.

    Args:
        output: the parameters, as in :func:`logistic_mixture_nll`.
        generator: where the noise's key is drawn from; torch's default generator of the device if omitted.
        noise: uniforms in (0, 1), `[B, K + channels, H, W]` of the dtype of `output`, instead of drawing them: K that
            choose the component, then one per channel.
        channels: 3 or 1.
        bins: to round to; None leaves the values continuous in [-1, 1], as PixelCNN++'s code does.
        min_log_scale: as in :func:`logistic_mixture_nll`.
        temperature: divides the mixture logits and multiplies the scales (as in NVAE); below 1 for sharper images.

    Returns:
        `[B, channels, H, W]` in [-1, 1], with the dtype and memory format of `output`.

    Raises:
        TypeError, ValueError: as :func:`logistic_mixture_nll`; `channels` neither 1 nor 3, a temperature that is not
            positive, or both `noise` and `generator`.
    """
    _checks.tensor("output", output)
    if channels not in CHANNELS:
        raise ValueError(f"channels: got {channels!r}, expected 1 or 3")
    count = _check_output(output, channels)
    _check_options(256 if bins is None else bins, min_log_scale)
    _checks.nonnegative("temperature", temperature)
    if temperature == 0:
        raise ValueError("temperature: got 0, expected a positive number")
    seed = None
    if noise is None:
        seed = torch.randint(0x7FFFFFFFFFFFFFFF, (), dtype=torch.int64, device=output.device, generator=generator)
    elif generator is not None:
        raise ValueError("generator: got one together with noise, expected one of the two")
    else:
        shape = (output.shape[0], count + channels, *output.shape[2:])
        _checks.like("noise", noise, "output", output, torch.Size(shape))
    with torch.no_grad():
        return reference.logistic_mixture_sample(
            output, noise, seed, channels, bins, float(min_log_scale), float(temperature)
        )


# Arguments.


def _check(output: Any, target: Any, bins: Any, min_log_scale: Any) -> None:
    _checks.tensor("output", output)
    _checks.tensor("target", target)
    if target.dim() != 4 or target.shape[1] not in CHANNELS:
        raise ValueError(f"target: got shape {tuple(target.shape)}, expected [B, 3, H, W] or [B, 1, H, W]")
    _check_output(output, target.shape[1])
    if output.shape[:1] + output.shape[2:] != target.shape[:1] + target.shape[2:]:
        raise ValueError(
            f"target: got shape {tuple(target.shape)}, expected the batch, height and width of output, "
            f"{tuple(output.shape)}"
        )
    if target.device != output.device:
        raise ValueError(f"target: got a tensor on {target.device}, expected {output.device}, where output is")
    _check_options(bins, min_log_scale)


def _check_output(output: Tensor, channels: int) -> int:
    """The number of components."""
    each = reference.parameters_per_component(channels)
    if output.dim() != 4 or output.shape[1] % each or not output.shape[1]:
        raise ValueError(
            f"output: got shape {tuple(output.shape)}, expected [B, {each} K, H, W] with K components "
            f"for {channels} channel(s)"
        )
    return output.shape[1] // each


def _check_options(bins: Any, min_log_scale: Any) -> None:
    if isinstance(bins, bool) or not isinstance(bins, int):
        raise TypeError(f"bins: got {type(bins).__name__}, expected an int")
    if bins < 2:
        raise ValueError(f"bins: got {bins}, expected at least 2")
    if isinstance(min_log_scale, bool) or not isinstance(min_log_scale, (int, float)):
        raise TypeError(f"min_log_scale: got {type(min_log_scale).__name__}, expected a number")
    if not _LOWEST_LOG_SCALE <= min_log_scale < float("inf"):
        raise ValueError(f"min_log_scale: got {min_log_scale}, expected a finite number >= {_LOWEST_LOG_SCALE:g}")


def _combine(weight: Tensor | None, mask: Tensor | None, output: Tensor, pixels: torch.Size) -> Tensor | None:
    """Weight and mask as one dense [B, H, W] tensor in the type of the sums, or None."""
    dtype = torch.float64 if output.dtype == torch.float64 else torch.float32
    if weight is not None:
        _checks.broadcastable("weight", weight, "output", output, pixels)
        weight = weight.to(dtype)
    if mask is not None:
        if isinstance(mask, Tensor) and mask.dtype != torch.bool:
            raise TypeError(f"mask: got dtype {mask.dtype}, expected torch.bool; fractions go into weight")
        _checks.broadcastable("mask", mask, "output", output, pixels, boolean=True)
        weight = mask.to(dtype) if weight is None else torch.where(mask, weight, 0.0)
    return None if weight is None else weight.expand(pixels).contiguous()


def _check_support(target: Tensor, weight: Tensor | None, bins: int) -> None:
    place = (target.double() + 1) * ((bins - 1) / 2)
    # A value of [-1, 1] is rounded by up to eps / 4, and places are (bins - 1) / 2 times as far apart.
    slack = 1e-3 + torch.finfo(target.dtype).eps * (bins - 1) / 8
    off = ((place - place.round()).abs() > slack) | (place < -slack) | (place > bins - 1 + slack) | place.isnan()
    if weight is not None:
        off &= (weight != 0).unsqueeze(1)
    if off.any():
        value = target[off][0].item()
        raise ValueError(f"target: got {value:g}, expected one of {bins} equally spaced values in [-1, 1]")


# Dispatcher ops. Every backend implements exactly these.


def _logistic_mixture_nll_fake(output, target, weight, reduction, bins, min_log_scale):
    batch, _, height, width = output.shape
    shape = {"none": (batch, height, width), "batch": (batch,)}.get(reduction, ())
    return output.new_empty(shape, dtype=torch.float64 if output.dtype == torch.float64 else torch.float32)


def _logistic_mixture_nll_backward_fake(grad, output, target, weight, reduction, bins, min_log_scale):
    return layout.empty_output(output)


def _logistic_mixture_nll_with_gradient_fake(output, target, weight, reduction, bins, min_log_scale):
    loss = _logistic_mixture_nll_fake(output, target, weight, reduction, bins, min_log_scale)
    return loss, layout.empty_output(output)


define(
    "logistic_mixture",
    "logistic_mixture_nll(Tensor output, Tensor target, Tensor? weight, str reduction, int bins, float min_log_scale)"
    " -> Tensor",
    _logistic_mixture_nll_fake,
)
define(
    "logistic_mixture",
    "logistic_mixture_nll_backward(Tensor grad, Tensor output, Tensor target, Tensor? weight, str reduction, int bins, "
    "float min_log_scale) -> Tensor",
    _logistic_mixture_nll_backward_fake,
)
define(
    "logistic_mixture",
    "logistic_mixture_nll_with_gradient(Tensor output, Tensor target, Tensor? weight, str reduction, int bins, "
    "float min_log_scale) -> (Tensor, Tensor)",
    _logistic_mixture_nll_with_gradient_fake,
)


def _save(ctx, *inputs):
    ctx.save_for_backward(*inputs[:3])  # tensors or None
    ctx.rest = inputs[3:]  # options


def _vjp(ctx, grad):
    if grad is None or not ctx.needs_input_grad[0]:
        return (None,) * 6
    return _logistic_mixture_nll_backward(grad, *ctx.saved_tensors, *ctx.rest), *(None,) * 5


_logistic_mixture_nll = differentiate("logistic_mixture_nll", _save, _vjp)
_logistic_mixture_nll_backward = differentiate_backward("logistic_mixture_nll_backward")
differentiate_backward("logistic_mixture_nll_with_gradient")  # differentiable as any op is, though nobody asks for it
_with_gradient = differentiate_in_one_pass("logistic_mixture_nll_with_gradient", _save, _vjp, positions=(0,))
