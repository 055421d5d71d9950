"""What a critic must return."""

from __future__ import annotations

from torch import Tensor


def one_per_sample(output: object, batch: int) -> Tensor:
    """The critic's output as `[N]`; TypeError or ValueError if it is anything but one value per sample."""
    if not isinstance(output, Tensor):
        raise TypeError(f"critic: got an output of type {type(output).__name__}, expected a tensor")
    if output.numel() != batch:
        got = tuple(output.shape)
        raise ValueError(f"critic: got an output of shape {got}, expected one value for each of {batch} samples")
    return output.reshape(-1)
