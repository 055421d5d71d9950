"""A generator run backward: which code makes this image?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Optimizer = Literal["adam", "lbfgs"]
OPTIMIZERS = ("adam", "lbfgs")
Decode = Callable[[Tensor], Tensor]


class Inversion(NamedTuple):
    """For each of B images the best code found: `z` [B, D] and the `images` that it decodes to.

    `distance` [B] is its mean squared error, `loss` [B] that plus the prior's term, and `restarts` [R, B] the loss that
    each restart ended with: where they differ much, the search has several bottoms and more restarts may pay.
    """

    z: Tensor
    images: Tensor
    distance: Tensor
    loss: Tensor
    restarts: Tensor


def invert(
    decode: Decode,
    images: Tensor,
    latent_dim: int,
    *,
    features: Callable[[Tensor], Tensor] | None = None,
    prior_weight: float = 0.0,
    optimizer: Optimizer = "adam",
    steps: int = 200,
    lr: float | None = None,
    restarts: int = 4,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    chunk: int = 64,
) -> Inversion:
    r"""Minimise, over z by itself, the distance of what z decodes to from an image.

    .. math::
        \operatorname{mean}\left(f(\mathrm{decode}(z)) - f(x)\right)^2 + \frac{\lambda}{2D} |z|^2

    Each image and each restart is a search of its own: from its start on, it knows nothing of the others (provided that
    `decode` treats samples independently; put a model with batch norm into evaluation mode). The parameters of the
    generator get no gradients.

    Args:
        decode: `[B, D]` to images, differentiable; such as a model's `decode`.
        images: `[B, C, H, W]`, what to find.
        latent_dim: D.
        features: f, to compare features rather than pixels (which helps where the pixels' distance is flat, as it is
            for a thing in the wrong place): `[B, C, H, W]` to `[B, ...]`, differentiable.
        prior_weight: :math:`\lambda`; the term is the negative log-density of the standard normal per dimension, up to
            a constant.
        optimizer: "adam", all searches of a chunk at once, with a step size that falls to zero along a cosine; or
            "lbfgs", one after the other with a line search: more exact, slower where there are many images.
        steps: of Adam, or evaluations at most of each L-BFGS search.
        lr: Adam's first step size, 0.1 if omitted; L-BFGS's 1.
        restarts: searches for each image.
        start: `[B, D]`, the code where the first search begins, such as an encoder's; the others, and without it the
            first too, begin at draws from the standard normal.
        generator: a CPU generator of these draws; torch's default one if omitted.
        chunk: images at once, each with all its restarts.

    Raises:
        TypeError: images that are not a floating-point tensor.
        ValueError: an argument out of range, shapes that do not fit, an unknown `optimizer`, or a `decode` that gives
            another shape than the images have.

    Sources: Zhu et al., *Generative visual manipulation on the natural image manifold*, ECCV 2016, arXiv:1609.03552;
    Creswell and Bharath, *Inverting the generator of a GAN*, 2018, arXiv:1802.05701.
    """
    _check(images, latent_dim, prior_weight, optimizer, steps, restarts, start, chunk)
    found = []
    # All draws first: which image is in which chunk then changes nothing.
    draws = torch.randn(restarts, len(images), latent_dim, generator=generator, device="cpu").to(images)
    if start is not None:
        draws[0] = start
    for first in range(0, len(images), chunk):
        part = images[first : first + chunk]
        search = _Search(decode, part, features, prior_weight)
        z = draws[:, first : first + chunk].reshape(-1, latent_dim)
        z = _adam(search, z, steps, lr or 0.1) if optimizer == "adam" else _lbfgs(search, z, steps, lr or 1.0)
        found.append(_best(search, z, restarts))
    z, found_images, distance, loss = (torch.cat([getattr(f, name) for f in found]) for name in Inversion._fields[:4])
    return Inversion(z, found_images, distance, loss, torch.cat([f.restarts for f in found], 1))


class _Search:
    """The loss of codes [R B, D], restart by restart, against the images [B, ...]."""

    def __init__(
        self, decode: Decode, images: Tensor, features: Callable[[Tensor], Tensor] | None, prior_weight: float
    ) -> None:
        self.decode, self.features, self.prior_weight = decode, features or (lambda x: x), prior_weight
        self.shape = images.shape[1:]
        with torch.no_grad():
            self.target = self.features(images)

    def __call__(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(loss [n], distance [n], images) of codes [n, D] for the targets `rows` [n]."""
        images = self.decode(z)
        if images.shape[1:] != self.shape:
            got, wanted = tuple(images.shape[1:]), tuple(self.shape)
            raise ValueError(f"decode: got images of shape {got}, expected {wanted}, as images has")
        distance = (self.features(images) - self.target[rows]).square().flatten(1).mean(1)
        return distance + 0.5 * self.prior_weight * z.square().mean(1), distance, images

    def rows(self, z: Tensor) -> Tensor:
        """Which target each of the codes [R B, D] is for."""
        return torch.arange(len(z), device=z.device) % len(self.target)


def _adam(search: _Search, z: Tensor, steps: int, lr: float) -> Tensor:
    z, rows = z.clone().requires_grad_(), search.rows(z)
    optimizer = torch.optim.Adam([z], lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        # Summed: the gradient of one search then does not know how many others there are.
        with torch.enable_grad():
            (z.grad,) = torch.autograd.grad(search(z, rows)[0].sum(), z)
        optimizer.step()
        schedule.step()
    return z.detach()


def _lbfgs(search: _Search, z: Tensor, steps: int, lr: float) -> Tensor:
    # One search at a time: L-BFGS takes all its numbers for one problem, with one step size and one stopping rule.
    rows = search.rows(z)
    return torch.cat([z[:0], *(_lbfgs_one(search, z[i : i + 1], rows[i : i + 1], steps, lr) for i in range(len(z)))])


def _lbfgs_one(search: _Search, z: Tensor, row: Tensor, steps: int, lr: float) -> Tensor:
    z = z.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [z],
        lr,
        max_iter=steps,
        max_eval=steps,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        with torch.enable_grad():
            loss = search(z, row)[0].sum()
            (z.grad,) = torch.autograd.grad(loss, z)
        return loss.detach()

    optimizer.step(closure)
    return z.detach()


@torch.no_grad()
def _best(search: _Search, z: Tensor, restarts: int) -> Inversion:
    # A search that ran away to NaN must not win.
    loss, distance, images = (t.unflatten(0, (restarts, -1)) for t in search(z, search.rows(z)))
    loss = loss.nan_to_num(nan=torch.inf)
    best, column = loss.argmin(0), torch.arange(loss.shape[1], device=loss.device)
    z = z.unflatten(0, (restarts, -1))
    return Inversion(z[best, column], images[best, column], distance[best, column], loss[best, column], loss)


def _check(
    images: Tensor,
    latent_dim: int,
    prior_weight: float,
    optimizer: str,
    steps: int,
    restarts: int,
    start: Tensor | None,
    chunk: int,
) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = f"dtype {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images: got {got}, expected a floating-point tensor")
    if images.dim() != 4 or not len(images):
        raise ValueError(f"images: got shape {tuple(images.shape)}, expected [B, C, H, W] with at least one image")
    for name, value in (("latent_dim", latent_dim), ("steps", steps), ("restarts", restarts), ("chunk", chunk)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}, expected a positive integer")
    if not 0 <= prior_weight < float("inf"):
        raise ValueError(f"prior_weight: got {prior_weight!r}, expected a finite number >= 0")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer: got {optimizer!r}, expected one of {', '.join(map(repr, OPTIMIZERS))}")
    if start is not None and start.shape != (len(images), latent_dim):
        raise ValueError(f"start: got shape {tuple(start.shape)}, expected {(len(images), latent_dim)}")
