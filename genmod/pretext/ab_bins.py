"""The 313 colour classes of Zhang, Isola and Efros (*Colorful image colorization*, ECCV 2016), and coding in them.

The paper cuts the ab plane into a grid of 10 and keeps "the Q = 313 values which are in-gamut". :func:`ab_bins`
computes them: the grid points (a, b) from which the convex hull of sRGB's colours in the plane is at most one step of
the grid away in a and in b; in other words, all corners of those grid squares that touch the hull. That gives 313
points, the same 313 as in the list that the authors published. (Of the grid points, 225 are colours of sRGB
themselves, and 261 are the nearest one to some colour.)
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod.pretext.lab import rgb_to_lab

STEP = 10.0
NEIGHBORS = 5  # bins that a colour is spread over
_REACH = 12  # the grid goes from -120 to 120


@functools.cache
def _bins(device: torch.device) -> Tensor:
    levels = torch.linspace(0, 1, 33, dtype=torch.float64, device="cpu")
    ab = rgb_to_lab(torch.cartesian_prod(levels, levels, levels).T[:, :, None])[1:, :, 0]
    axis = STEP * torch.arange(-_REACH, _REACH + 1, dtype=torch.float64, device="cpu")
    grid = torch.cartesian_prod(axis, axis)
    # A convex set and a square around a point meet unless some direction tells them apart.
    angle = torch.arange(720, dtype=torch.float64, device="cpu") * (2 * math.pi / 720)
    direction = torch.stack([angle.cos(), angle.sin()], 1)
    hull = (direction @ ab).max(1).values
    square = STEP * direction.abs().sum(1)
    near = (grid @ direction.T <= hull + square).all(1)
    return grid[near].to(device, torch.float32)


def ab_bins(device: torch.device | str = "cpu") -> Tensor:
    """The centres (a, b) of the bins, `[313, 2]` in float32, ordered by a and then by b."""
    return _bins(torch.device(device)).clone()


@functools.cache
def _windows(device: torch.device) -> tuple[Tensor, Tensor]:
    """For every grid point the bins of the 5 x 5 points around it, `[25 * 25, 25]`, and whether they are bins."""
    side = 2 * _REACH + 1
    cell = (_bins(torch.device("cpu")) / STEP).round().long() + _REACH
    number = torch.full((side + 4, side + 4), -1, device="cpu")
    number[cell[:, 0] + 2, cell[:, 1] + 2] = torch.arange(len(cell), device="cpu")
    around = number.unfold(0, 5, 1).unfold(1, 5, 1).reshape(side * side, 25)
    return around.clamp(min=0).to(device), (around >= 0).to(device)


def soft_encode(ab: Tensor, sigma: float = 5.0) -> tuple[Tensor, Tensor]:
    r"""Spread each colour over its 5 nearest bins, with weights :math:`\propto \exp(-d^2 / 2\sigma^2)` of sum 1.

    Args:
        ab: colours `[..., 2, H, W]` that sRGB can show.
        sigma: of the Gaussian; the paper's is 5.

    Returns:
        The numbers of the bins `[..., 5, H, W]`, nearest first, and their weights, in float32 (float64 for float64).

    The nearest bins are looked for among the 25 around a colour, not among all 313.
    """
    if not isinstance(ab, Tensor) or not ab.is_floating_point():
        raise TypeError(f"ab: got {type(ab).__name__}, expected a floating-point tensor [..., 2, H, W]")
    if ab.dim() < 3 or ab.shape[-3] != 2:
        raise ValueError(f"ab: got shape {tuple(ab.shape)}, expected [..., 2, H, W]")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma: got {sigma}, expected a finite number > 0")
    colors = ab.movedim(-3, -1)
    colors = colors if ab.dtype == torch.float64 else colors.float()
    cell = (colors / STEP).round().long().clamp(-_REACH, _REACH) + _REACH
    around, there = _windows(ab.device)
    row = cell[..., 0] * (2 * _REACH + 1) + cell[..., 1]
    candidates = around[row]  # [..., H, W, 25]
    square = (_bins(ab.device).to(colors.dtype)[candidates] - colors[..., None, :]).square().sum(-1)
    nearest = square.masked_fill(~there[row], math.inf).topk(NEIGHBORS, dim=-1, largest=False)
    weights = torch.softmax(nearest.values / (-2 * sigma**2), -1)
    return candidates.gather(-1, nearest.indices).movedim(-1, -3), weights.movedim(-1, -3)


def smooth_prior(counts: Tensor, sigma: float = 5.0) -> Tensor:
    """Counts of the bins to probabilities, smoothed by a Gaussian in the ab plane that keeps each bin's mass inside.

    Args:
        counts: `[313]`, not negative and not all zero.
        sigma: of the Gaussian.
    """
    centres = _bins(counts.device).double()
    if counts.shape != (len(centres),) or not bool((counts >= 0).all()) or not bool(counts.sum() > 0):
        raise ValueError(f"counts: got shape {tuple(counts.shape)}, expected [313], not negative and not all zero")
    kernel = torch.softmax(torch.cdist(centres, centres).square() / (-2 * sigma**2), 1)  # row q: where q's mass goes
    prior = counts.double() @ kernel
    return prior / prior.sum()


def rebalancing_weights(prior: Tensor, mix: float = 0.5) -> Tensor:
    r"""A weight for each bin so that rare colours count: :math:`w \propto ((1-\lambda)\tilde p + \lambda/Q)^{-1}`.

    Scaled so that its expectation under the prior, :math:`\sum_q \tilde p_q w_q`, is 1 (the paper's equation 4).

    Args:
        prior: probabilities `[Q]`, as :func:`smooth_prior` gives them.
        mix: lambda in [0, 1]; the paper's is 0.5, and 1 gives every bin the weight 1.
    """
    if not 0 <= mix <= 1:
        raise ValueError(f"mix: got {mix}, expected a number in [0, 1]")
    weights = 1 / ((1 - mix) * prior + mix / len(prior))
    return weights / (weights * prior).sum()


def annealed_mean(logits: Tensor, temperature: float = 0.38) -> Tensor:
    """The mean colour of the bins under softmax(logits / temperature), the paper's equation 5.

    Temperature 1 gives the mean of the distribution, which is grey where it is unsure, and towards 0 its mode, which is
    spotty; 0.38 is the paper's choice between them.

    Args:
        logits: `[..., 313, H, W]`.
        temperature: greater than 0.

    Returns:
        Colours `[..., 2, H, W]`, in float32 (float64 for float64).
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: got {temperature}, expected a finite number > 0")
    centres = _bins(logits.device)
    if logits.dim() < 3 or logits.shape[-3] != len(centres):
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, expected [..., {len(centres)}, H, W]")
    wide = logits if logits.dtype == torch.float64 else logits.float()
    probabilities = F.softmax(wide / temperature, -3)
    return (probabilities.movedim(-3, -1) @ centres.to(wide.dtype)).movedim(-1, -3)
