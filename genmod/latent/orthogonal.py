"""A decoder whose latents change the image in directions at right angles to each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Decode = Callable[[Tensor], Tensor]
Estimator = Literal["exact", "pairs", "hutchinson"]
ESTIMATORS = ("exact", "pairs", "hutchinson")


def jacobian_columns(decode: Decode, z: Tensor) -> Tensor:
    """How the output of each sample moves with each of its latents: `[B, D]` to `[B, D, ...]`, differentiable.

    One forward-mode derivative per latent, all together, which take D times the memory of a call; no row of the
    Jacobian, one per pixel, is ever made. `decode` must treat samples independently: with batch norm in training mode
    the columns include what the other samples do.
    """
    _check(decode, z)
    axes = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    columns = torch.func.vmap(lambda axis: _derivative(decode, z, axis.expand_as(z)), out_dims=1)
    return columns(axes)


def orthogonality_penalty(
    decode: Decode,
    z: Tensor,
    *,
    estimator: Estimator = "exact",
    normalize: bool = True,
    probes: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""How far the columns :math:`J_i = \partial\,\mathrm{decode}(z) / \partial z_i` are from orthogonal.

    .. math::
        \frac{1}{D(D-1)} \sum_{i \ne j} \cos^2(J_i, J_j), \qquad \text{or} \qquad
        \sum_{i \ne j} \left(J_i^\top J_j\right)^2

    averaged over the batch. The first (`normalize`) is in [0, 1], and does not change with the scale of latents or
    images; the second is the paper's loss for one layer, which can also be lowered by a decoder that hears its latents
    less. A column of zeros is orthogonal to all others. Latents that move the image at right angles move disjoint
    pixels, or the same ones in independent ways: a local form of disentanglement, which wants no labels.

    Add it to a loss with a weight, on codes of the batch or draws from the prior:

        loss = model.loss(images).loss + weight * orthogonality_penalty(model.decode, model.prior(8))

    Args:
        decode: `[B, D]` to `[B, ...]`; every sample by itself, as for :func:`jacobian_columns`. The paper penalises the
            first layers of a generator one by one; give their composition up to some layer for that.
        z: `[B, D]`, D >= 2, floating point.
        estimator: "exact": all D columns. "pairs": `probes` pairs of columns per sample, drawn without replacement,
            at the cost of two columns each; unbiased for both forms. "hutchinson", without `normalize`, the paper's:
            half the variance of :math:`|J v|^2` over `probes` random sign vectors v, which equals the second sum in
            expectation.
        normalize: the first form rather than the second.
        probes: pairs, at most D(D - 1) / 2, or sign vectors, at least 2. Not used by "exact".
        generator: of the draws, a CPU one; torch's default one if omitted.

    Returns:
        A scalar of the dtype of z (float32 at least), differentiable in z and in the parameters of `decode`.

    Raises:
        TypeError: a `decode` that is not callable, or a `z` that is not a floating-point tensor.
        ValueError: not a matrix of at least two columns, an empty batch, `probes` out of range, an unknown `estimator`,
            or "hutchinson" with `normalize`.

    Source: Wei et al., *Orthogonal Jacobian regularization for unsupervised disentanglement in image generation*,
    ICCV 2021, arXiv:2108.07668; the estimator from the variance: Peebles et al., *The Hessian penalty*, ECCV 2020,
    arXiv:2008.10599.
    """
    _check(decode, z)
    size = z.shape[1]
    _check_estimator(estimator, normalize, probes, size)
    if estimator == "exact":
        columns = _wide(jacobian_columns(decode, z).flatten(2))
        columns = _unit(columns) if normalize else columns
        squares = (columns @ columns.mT).square()
        off_diagonal = squares.sum((1, 2)) - squares.diagonal(dim1=1, dim2=2).sum(1)
        return (off_diagonal / (size * (size - 1)) if normalize else off_diagonal).mean()
    if estimator == "pairs":
        first, second = _draw_pairs(len(z), size, probes, generator, z.device)
        axes = torch.eye(size, dtype=z.dtype, device=z.device)
        tangents = torch.stack([axes[first], axes[second]])  # [2, probes, B, D]
        moves = torch.func.vmap(lambda tangent: _derivative(decode, z, tangent))(tangents.flatten(0, 1))
        a, b = _wide(moves.flatten(2)).unflatten(0, (2, probes))
        a, b = (_unit(a), _unit(b)) if normalize else (a, b)
        squares = (a * b).sum(-1).square()
        return squares.mean() if normalize else squares.mean() * (size * (size - 1))
    signs = torch.randint(0, 2, (probes, *z.shape), generator=generator, device="cpu").to(z) * 2 - 1
    moves = torch.func.vmap(lambda tangent: _derivative(decode, z, tangent))(signs)
    return 0.5 * _wide(moves.flatten(2)).square().sum(-1).var(0).mean()


def _derivative(decode: Decode, z: Tensor, tangent: Tensor) -> Tensor:
    """How the output moves when z moves along `tangent`."""
    return torch.func.jvp(decode, (z,), (tangent,))[1]


def _unit(columns: Tensor) -> Tensor:
    """Columns [..., P] divided by their lengths; those of zeros stay zero, and so do their gradients."""
    squared = columns.square().sum(-1, keepdim=True)
    there = squared > 0
    return torch.where(there, columns * torch.where(there, squared, 1.0).rsqrt(), 0.0)


def _draw_pairs(
    batch: int, size: int, pairs: int, generator: torch.Generator | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The members of so many distinct pairs of latents for each sample: `[pairs, B]` twice."""
    every = torch.combinations(torch.arange(size, device="cpu"), 2)
    order = torch.rand(batch, len(every), generator=generator, device="cpu").argsort(1)[:, :pairs]
    first, second = every[order.T].unbind(-1)
    return first.to(device), second.to(device)


def _wide(columns: Tensor) -> Tensor:
    """float32 at least: a product of four derivatives leaves the range of half precision."""
    return columns.to(torch.promote_types(columns.dtype, torch.float32))


def _check(decode: Decode, z: Tensor) -> None:
    if not callable(decode):
        raise TypeError(f"decode: got {type(decode).__name__}, expected a function from [B, D] to [B, ...]")
    if not isinstance(z, Tensor) or not z.is_floating_point():
        got = f"dtype {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"z: got {got}, expected a floating-point tensor")
    if z.dim() != 2 or not z.numel():
        raise ValueError(f"z: got shape {tuple(z.shape)}, expected [B, D], not empty")


def _check_estimator(estimator: str, normalize: bool, probes: int, size: int) -> None:
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: got {estimator!r}, expected one of {', '.join(map(repr, ESTIMATORS))}")
    if size < 2:
        raise ValueError(f"z: got {size} latent, expected at least 2")
    if estimator == "hutchinson" and normalize:
        raise ValueError("normalize: got True with estimator='hutchinson', expected False; 'pairs' normalises")
    least, most = (2, float("inf")) if estimator == "hutchinson" else (1, size * (size - 1) // 2)
    if estimator != "exact" and not least <= probes <= most:
        raise ValueError(f"probes: got {probes}, expected {least} to {most:g} for {size} latents")
