"""Reductions as public ops name them; the sums themselves are the kernels'."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from genmod import layout

Reduction = Literal["none", "per_dim", "batch", "batchmean", "mean", "sum"]
REDUCTIONS = ("none", "per_dim", "batch", "batchmean", "mean", "sum")


def empty_loss(view: Tensor, reduction: str) -> Tensor:
    """What a kernel returns for a loss over elements laid out as `view`: float32, or float64 for float64 inputs."""
    dtype = torch.float64 if view.dtype == torch.float64 else torch.float32
    if reduction == "none":
        return layout.empty_output(view, dtype)
    return view.new_empty((view.shape[0],) if reduction == "batch" else (), dtype=dtype)


def mean_over_batch(values: Tensor) -> Tensor:
    """The reduction "per_dim", which kernels leave to this: each element's mean over the batch."""
    return values.sum(0) / max(values.shape[0], 1)
