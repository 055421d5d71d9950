"""What every loss has in common: how its elements are summed."""

from __future__ import annotations

from torch import Tensor


def reduce(values: Tensor, reduction: str) -> Tensor:
    """Sum what `reduction` says: "none" nothing, "batch" each sample, the others everything."""
    if reduction == "none":
        return values
    if reduction == "batch":
        return values.reshape(values.shape[0], -1).sum(1) if values.numel() else values.new_zeros(values.shape[0])
    return values.sum() / _divisor(values, reduction)


def spread(grad: Tensor, like: Tensor, reduction: str) -> Tensor:
    """The gradient of each element, of the shape of `like`, from that of the reduced loss."""
    if reduction == "batch":
        grad = grad.view(-1, *[1] * (like.dim() - 1))
    return (grad / _divisor(like, reduction)).expand(like.shape)


def _divisor(values: Tensor, reduction: str) -> int:
    return max({"batchmean": values.shape[0], "mean": values.numel()}.get(reduction, 1), 1)
