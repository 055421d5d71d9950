"""Principal components of codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genmod.latent._need import need


@dataclass(frozen=True)
class PrincipalComponents:
    """mean `[D]`; directions `[k, D]`, orthonormal rows, that of most variance first; variance `[k]` along each.

    share `[k]`: of the codes' whole variance.
    """

    mean: Tensor
    directions: Tensor
    variance: Tensor
    share: Tensor

    def project(self, codes: Tensor) -> Tensor:
        """Coordinates along the directions: `[..., D]` to `[..., k]`."""
        return (codes - self.mean) @ self.directions.T

    def restore(self, coordinates: Tensor) -> Tensor:
        """The codes that have these coordinates and nothing beside: `[..., k]` to `[..., D]`."""
        return coordinates @ self.directions + self.mean


def principal_components(codes: Tensor, k: int | None = None) -> PrincipalComponents:
    """The principal components of codes `[N, D]`, by scikit-learn's exact solver; all min(N, D) if `k` is omitted.

    The sign of a direction is free; scikit-learn's rule makes it the same at every call. Tensors have the dtype and
    device of `codes`.

    Raises:
        ValueError: not a matrix with at least two rows, or a `k` that is not from 1 to min(N, D).
        ModuleNotFoundError: scikit-learn is not installed.
    """
    if codes.dim() != 2 or len(codes) < 2:
        raise ValueError(f"codes: got shape {tuple(codes.shape)}, expected [N, D] with at least two rows")
    most = min(codes.shape)
    if k is not None and not 1 <= k <= most:
        raise ValueError(f"k: got {k}, expected 1 to {most}")
    model = need("sklearn.decomposition").PCA(k, svd_solver="full").fit(codes.detach().double().cpu().numpy())
    arrays = (model.mean_, model.components_, model.explained_variance_, model.explained_variance_ratio_)
    return PrincipalComponents(*(torch.from_numpy(array).to(codes) for array in arrays))
