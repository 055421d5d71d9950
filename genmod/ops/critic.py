"""Family `critic`: what a critic is made of, with second derivatives that cost nothing they need not cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from genmod import backends, layout
from genmod.ops import _checks
from genmod.ops._library import define, differentiate
from genmod.ops._tracing import is_traced


def critic_leaky_relu(x: Tensor, negative_slope: float = 0.2) -> Tensor:
    r"""Leaky ReLU whose second derivative is None where torch's is a tensor of zeros.

    :math:`y = x` where :math:`x > 0` and :math:`\alpha x` elsewhere. In a gradient penalty torch's zeros run backward
    through the whole critic; here autograd has nothing to run. The mask that backward needs is one byte per element,
    in place of the activation.

    Args:
        x: any shape of rank >= 1; float32, float64, bfloat16 or float16.
        negative_slope: :math:`\alpha`; 0 is ReLU.

    Returns:
        A tensor of the shape, dtype and memory format of `x`.

    Raises:
        TypeError: `x` is no floating-point tensor, or `negative_slope` no number.
        ValueError: `x` is 0-d, or `negative_slope` is not finite.

    Differentiable to any order; the second derivative is zero. Kept for backward: the mask.
    Source: Maas, Hannun and Ng, ICML workshop 2013; penalties: Mescheder, Geiger and Nowozin, ICML 2018.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(critic_leaky_relu, (x,), x, negative_slope=negative_slope)
    _checks.tensor("x", x)
    _checks.number("negative_slope", negative_slope)
    if torch._C._are_functorch_transforms_active() or is_traced() or _needs_no_mask(x):
        # Plain ATen is right under every transform, and a compiler fuses it by itself.
        return torch.nn.functional.leaky_relu(x, negative_slope)
    return leaky_relu_mask(x, float(negative_slope))[0]


def _needs_no_mask(x: Tensor) -> bool:
    """Whether nothing will be differentiated, so that PyTorch's own, which keeps nothing, is all there is to do."""
    if (x.requires_grad and torch.is_grad_enabled()) or backends.forced() is not None:
        return False
    return x.is_contiguous() or layout.memory_format_of(x) is not torch.contiguous_format


# Dispatcher ops. Every backend implements exactly these.


def _mask_fake(x: Tensor, negative_slope: float) -> tuple[Tensor, Tensor]:
    return layout.empty_output(x), layout.empty_output(x, torch.bool)


def _apply_fake(x: Tensor, mask: Tensor, negative_slope: float) -> Tensor:
    return layout.empty_output(mask, x.dtype)


define("critic", "leaky_relu_mask(Tensor x, float negative_slope) -> (Tensor, Tensor)", _mask_fake)
define("critic", "leaky_relu_apply(Tensor x, Tensor mask, float negative_slope) -> Tensor", _apply_fake)


# Autograd. The map is linear once its mask is known, and its own transpose.


def _save_mask(ctx: Any, outputs: tuple[Tensor, Tensor], x: Tensor, negative_slope: float) -> None:
    ctx.mark_non_differentiable(outputs[1])
    ctx.save_for_backward(outputs[1])
    ctx.negative_slope = negative_slope


def _save_given_mask(ctx: Any, x: Tensor, mask: Tensor, negative_slope: float) -> None:
    ctx.save_for_backward(mask)
    ctx.negative_slope = negative_slope


def _transposed(ctx: Any, grad: Tensor | None) -> Tensor | None:
    (mask,) = ctx.saved_tensors
    return None if grad is None else leaky_relu_apply(grad, mask, ctx.negative_slope)


def _mask_vjp(ctx: Any, grad: Tensor | None, grad_mask: None) -> tuple[Tensor | None, None]:
    return _transposed(ctx, grad), None


def _apply_vjp(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None]:
    return _transposed(ctx, grad), None, None


def _why_plain(x: Tensor, *args: object, **kwargs: object) -> str:
    """For `genmod.explain`."""
    return "nothing is differentiated, so PyTorch's own does" if _needs_no_mask(x) else ""


backends.register_public("critic_leaky_relu", "leaky_relu_mask", _why_plain)
leaky_relu_mask = differentiate("leaky_relu_mask", _save_mask, _mask_vjp, keeps_outputs=True)
leaky_relu_apply = differentiate("leaky_relu_apply", _save_given_mask, _apply_vjp)
