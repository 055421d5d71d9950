"""Scaled dot-product attention that has a second derivative, which PyTorch's fused kernels lack."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    r""":math:`\operatorname{softmax}(q k^\top / \sqrt{C})\,v` of `[N, T, C]`, by PyTorch's fused kernels.

    With gradients, attention is computed once more in the backward pass, which keeps only `q`, `k` and `v`. A backward
    pass that is to be differentiated itself (`create_graph=True`) makes the T x T matrix.
    """
    plain = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if plain or not torch.is_grad_enabled():
        return _fused(q, k, v)
    return _TwiceDifferentiable.apply(q, k, v)


def _fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)).squeeze(1)


def _explicit_gradients(g: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
    g, q, k, v = g.to(wide), q.to(wide), k.to(wide), v.to(wide)
    scale = q.shape[-1] ** -0.5
    p = (scale * q @ k.mT).softmax(-1)
    dp = g @ v.mT
    ds = scale * p * (dp - (p * dp).sum(-1, keepdim=True))
    return (ds @ k).to(dtype), (ds.mT @ q).to(dtype), (p.mT @ g).to(dtype)


class _TwiceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return _fused(q, k, v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        (g,) = grads
        if torch.is_grad_enabled():
            return _explicit_gradients(g, *ctx.saved_tensors)
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            return torch.autograd.grad(_fused(*leaves), leaves, g)
