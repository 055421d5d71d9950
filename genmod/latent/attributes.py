"""Attribute vectors: the direction in which an attribute grows, and arithmetic with it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from genmod.latent._need import need

Method = Literal["mean", "logistic"]
METHODS = ("mean", "logistic")


def attribute_vector(codes: Tensor, labels: Tensor, *, method: Method = "mean", strength: float = 1.0) -> Tensor:
    """The vector to add to a code so that it gains an attribute.

    Args:
        codes: `[N, D]`.
        labels: `[N]`, booleans or 0 and 1: which codes have the attribute.
        method: "mean", the mean of the codes that have it minus the mean of the others (Larsen et al. 2016); or
            "logistic", the direction of the weights of a logistic regression, which leaves out what merely comes along
            with the attribute. It is as long as the distance of the two means along it.
        strength: for "logistic": the inverse weight of its penalty, for standardised codes (scikit-learn's C).

    Returns:
        `[D]`, with the dtype and device of `codes`. `z + v` gains the attribute, `z - v` loses it, and
        `z + 0.5 * v` goes half the way.

    Raises:
        TypeError: codes that are not a floating-point tensor.
        ValueError: shapes that do not fit, labels other than 0 and 1, nobody with or nobody without the attribute, or
            an unknown `method`.
        ModuleNotFoundError: "logistic" without scikit-learn.

    Sources: Larsen et al., *Autoencoding beyond pixels*, ICML 2016, arXiv:1512.09300; Shen et al., *Interpreting the
    latent space of GANs*, CVPR 2020, arXiv:1907.10786 (linear boundaries).
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(map(repr, METHODS))}")
    if not isinstance(codes, Tensor) or not codes.is_floating_point():
        raise TypeError(f"codes: got {getattr(codes, 'dtype', type(codes).__name__)}, expected a floating-point tensor")
    has = torch.as_tensor(labels, device=codes.device)
    if codes.dim() != 2 or has.shape != codes.shape[:1]:
        raise ValueError(
            f"labels: got shape {tuple(has.shape)} for codes of shape {tuple(codes.shape)}, expected [N] for [N, D]"
        )
    if not bool(((has == 0) | (has == 1)).all()):
        raise ValueError("labels: expected booleans, or 0 and 1")
    has = has.bool()
    if has.all() or not has.any():
        raise ValueError(
            f"labels: {int(has.sum())} of {len(has)} codes have the attribute; expected some with, some not"
        )
    z = codes.detach().double()
    difference = z[has].mean(0) - z[~has].mean(0)
    if method == "logistic":
        spread = z.std(0)
        spread = torch.where(spread > 0, spread, 1.0)
        model = need("sklearn.linear_model").LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
        model.fit(((z - z.mean(0)) / spread).cpu().numpy(), has.cpu().numpy())
        direction = torch.from_numpy(model.coef_[0]).to(z) / spread
        direction = direction / direction.norm().clamp_min(torch.finfo(z.dtype).tiny)
        difference = (difference @ direction) * direction
    return difference.to(codes.dtype)


def analogy(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The code that is to `c` what `b` is to `a`: c + b - a, of codes or of means of several, `[..., D]` each."""
    return c + b - a


def without(codes: Tensor, direction: Tensor) -> Tensor:
    """The codes `[..., D]` without their part along a direction `[D]`: what is left does not vary with it.

    Between two attribute vectors it makes one that leaves the other attribute as it is. A zero direction takes nothing
    away.
    """
    unit = torch.nn.functional.normalize(direction, dim=-1)
    return codes - (codes @ unit)[..., None] * unit
