"""Scaled dot-product attention that has a second derivative, which PyTorch's fused kernels lack."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod.ops._tracing import is_traced


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    r""":math:`\operatorname{softmax}(q k^\top / \sqrt{C})\,v` of `[N, T, C]`, by PyTorch's fused kernels.

    With gradients, attention is computed once more in the backward pass, which keeps only `q`, `k` and `v`. A backward
    pass that is to be differentiated itself (`create_graph=True`) makes the T x T matrix.
    """
    plain = is_traced() or torch._C._are_functorch_transforms_active()
    if not plain and not torch.is_grad_enabled() and _fused_is_slow(q):
        return _by_rows(q, k, v)
    if plain or not torch.is_grad_enabled():
        return _fused(q, k, v)
    return _TwiceDifferentiable.apply(q, k, v)


def _fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)).squeeze(1)


#: Scores of one part: 256 MB in float32. On an H200, 16384 tokens of 512 channels: in parts of 4096 rows 2.5 ms, of
#: 2048 2.7 ms, of 1024 2.9 ms; parts that the L2 cache would hold cost more launches than they save.
_PART = 1 << 26


def _fused_is_slow(q: Tensor) -> bool:
    """Heads wider than 256 have no flash kernel: on an H200, 16384 tokens of 512 channels in bfloat16, the one that
    PyTorch takes instead needs 3.7 ms, where the two products are 0.8."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    return q.is_cuda and half and q.shape[-1] > 256 and q.shape[-2] >= 1024 and _has_wide_products()


@functools.cache
def _has_wide_products() -> bool:
    return "dtype" in torch.ops.aten.baddbmm.overloads()  # half precision in, float32 out


def _by_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by two products, a part of the rows at a time; scores and their softmax in float32."""
    out, keys, nothing = torch.empty_like(v), k.mT, q.new_empty((), dtype=torch.float32)
    rows = max(1, _PART // (k.shape[0] * k.shape[1]))
    for first in range(0, q.shape[1], rows):
        part = slice(first, first + rows)
        scores = _scores(nothing, q[:, part], keys)
        torch.bmm(scores.softmax(-1).to(v.dtype), v, out=out[:, part])
    return out


def _scores(nothing: Tensor, q: Tensor, keys: Tensor) -> Tensor:
    shape = (q.shape[0], q.shape[1], keys.shape[2])
    return torch.baddbmm(nothing.expand(shape), q, keys, out_dtype=torch.float32, beta=0, alpha=q.shape[-1] ** -0.5)


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
