"""Path-length regularisation of a generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genmod.ops import _checks


def path_lengths(images: Tensor, latents: Tensor, *, noise: Tensor | None = None, eps: float = 1e-12) -> Tensor:
    r""":math:`\lVert J_w^\top y \rVert` for each sample, with :math:`y` normal noise over the pixels.

    Args:
        images: `G(w)`, `[N, C, H, W]` or any `[N, C, ...]`, with the graph that leads back to `latents`.
        latents: `w`, `[N, D]`, or `[N, L, D]` for one latent per layer, over which the squared norm is averaged.
        noise: :math:`y`, of the shape of `images`; drawn if omitted. It is divided by the root of the number of pixels.
        eps: inside the root.

    Returns:
        `[N]`, in float32 or better; differentiable once more, by the generator's parameters.

    Raises:
        ValueError: `latents` that need no gradient, or batches that differ.
    """
    _checks.tensor("images", images)
    _checks.tensor("latents", latents)
    if not latents.requires_grad:
        raise ValueError("latents: got a tensor that requires no gradient, expected the one that images were made from")
    if images.shape[0] != latents.shape[0]:
        raise ValueError(f"latents: got a batch of {latents.shape[0]}, expected {images.shape[0]}, as images has")
    noise = torch.randn_like(images) if noise is None else noise
    pixels = max(math.prod(images.shape[2:]), 1)
    projected = (images * noise).sum() / math.sqrt(pixels)
    (gradient,) = torch.autograd.grad(projected, latents, create_graph=True)
    wide = gradient if gradient.dtype == torch.float64 else gradient.float()
    return (wide.square().sum(-1).reshape(wide.shape[0], -1).mean(1) + eps).sqrt()


class PathLength(nn.Module):
    r""":math:`\lambda\,\mathbb E(\lVert J_w^\top y\rVert - a)^2`, with :math:`a` a running mean of the lengths.

    Call it with `images` and `latents` as for :func:`path_lengths`; in training each call moves the mean.

    Args:
        weight: :math:`\lambda`, >= 0.
        decay: how fast the mean follows, in (0, 1].

    Source: Karras et al., *Analyzing and improving the image quality of StyleGAN*, CVPR 2020.
    """

    mean: Tensor

    def __init__(self, weight: float = 2.0, decay: float = 0.01) -> None:
        super().__init__()
        _checks.nonnegative("weight", weight)
        if not 0 < decay <= 1:
            raise ValueError(f"decay: got {decay}, expected a number in (0, 1]")
        self.weight, self.decay = weight, decay
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, images: Tensor, latents: Tensor, noise: Tensor | None = None) -> Tensor:
        lengths = path_lengths(images, latents, noise=noise)
        if self.training:
            self.mean.lerp_(lengths.detach().mean().to(self.mean.dtype), self.decay)
        return self.weight * (lengths - self.mean).square().mean()

    def extra_repr(self) -> str:
        return f"weight={self.weight}, decay={self.decay}"
