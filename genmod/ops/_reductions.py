"""Reductions as public ops name them; the sums themselves are the kernels'."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from genmod import layout
from genmod.ops._tracing import is_traced

Reduction = Literal["none", "per_dim", "batch", "batchmean", "mean", "sum"]
REDUCTIONS = ("none", "per_dim", "batch", "batchmean", "mean", "sum")

#: Those that leave one number.
TO_A_NUMBER = ("batchmean", "mean", "sum")


def one_pass_is_cheaper(reduction: str, *differentiable: Tensor | None) -> bool:
    """Whether a loss should compute the gradients of these tensors, the first of which is given, along with itself.

    On the CPU the gradient costs little more than the loss while the inputs are in cache, and another pass over them
    later costs as much again. A GPU gains nothing, since it would have to scale what it kept. Half precision could lose
    what it kept: the incoming gradient's scale (a loss scaler's, say) comes too late for what has underflowed.
    """
    first = differentiable[0]
    assert first is not None
    return (
        first.device.type == "cpu"
        and reduction in TO_A_NUMBER
        and first.dtype in (torch.float32, torch.float64)
        and torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in differentiable)
        and not is_traced()
    )


def empty_loss(view: Tensor, reduction: str) -> Tensor:
    """What a kernel returns for a loss over elements laid out as `view`: float32, or float64 for float64 inputs."""
    dtype = torch.float64 if view.dtype == torch.float64 else torch.float32
    if reduction == "none":
        return layout.empty_output(view, dtype)
    return view.new_empty((view.shape[0],) if reduction == "batch" else (), dtype=dtype)


def mean_over_batch(values: Tensor) -> Tensor:
    """The reduction "per_dim", which kernels leave to this: each element's mean over the batch."""
    return values.sum(0) / max(values.shape[0], 1)
