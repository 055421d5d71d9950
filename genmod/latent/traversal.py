"""One latent moved at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genmod import ops


def traverse(z: Tensor, dims: Sequence[int], values: Tensor | Sequence[float]) -> Tensor:
    """A grid of codes: row r, column c is `z` with latent `dims[r]` set to `values[c]`.

    Args:
        z: `[..., D]`, the codes to start from.
        dims: which latents, each from 0 to D - 1, or from -D to -1 counted from the end.
        values: what they are set to.

    Returns:
        `[..., rows, columns, D]`; `z` itself is unchanged.

    Raises:
        ValueError: a latent that is not there.
    """
    size = z.shape[-1]
    if wrong := [dim for dim in dims if not -size <= dim < size]:
        raise ValueError(f"dims: got {wrong}, expected latents from 0 to {size - 1}")
    steps = torch.as_tensor(values, dtype=z.dtype, device=z.device)
    grid = z[..., None, None, :].expand(*z.shape[:-1], len(dims), len(steps), size).clone()
    for row, dim in enumerate(dims):
        grid[..., row, :, dim] = steps
    return grid


def by_information(mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """The latents in order of their KL, averaged over the samples, the largest first.

    A latent that the model does not use has a KL near zero, and moving it changes nothing.

    Args:
        mean, logvar: `[N, D]`, the posteriors.

    Returns:
        `(dims, kl)`, both `[D]`: which latent comes at each place, and its KL in nats.
    """
    kl = ops.gaussian_kl(mean, logvar, reduction="per_dim")
    kl, dims = kl.sort(descending=True)
    return dims, kl
