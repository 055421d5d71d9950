"""Total correlation: what the codes know about each other, in nats."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from genmod import ops
from genmod.latent.metrics._inputs import matrix, posterior


def gaussian_total_correlation(codes: Any) -> float:
    r"""Total correlation of the Gaussian that has the codes' covariance :math:`\Sigma`, in nats.

    .. math::
        \mathrm{TC} = \tfrac12 \left(\sum_d \log \Sigma_{dd} - \log\det \Sigma\right)

    This is a lower bound for codes whose marginals are Gaussian; it sees linear dependence alone. The estimate from N
    samples is biased up by about D(D - 1) / 4N nats.

    Args:
        codes: `[N, D]`, N > D, array or tensor.

    Returns:
        The total correlation; infinite where codes are linearly dependent. Constant codes depend on nothing and are
        left out.

    Raises:
        TypeError: not an array or tensor.
        ValueError: not a matrix, no more rows than columns, or values that are not finite.
    """
    z: np.ndarray = matrix("codes", codes).astype(np.float64)
    if not np.isfinite(z).all():
        raise ValueError("codes: got values that are not finite")
    if len(z) <= z.shape[1]:
        raise ValueError(f"codes: got shape {z.shape}, expected more rows than columns")
    z = z[:, z.std(0) > 1e-9 * np.abs(z).max(0)]
    if z.shape[1] < 2:
        return 0.0
    # Of the correlation matrix only the determinant is left, and its eigenvalues tell rank from rounding.
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(z, rowvar=False))
    if eigenvalues[0] <= z.shape[1] * np.finfo(np.float64).eps:
        return float("inf")
    return float(-0.5 * np.log(eigenvalues).sum())


def posterior_total_correlation(
    mean: Any, logvar: Any, *, batch_size: int = 2048, generator: torch.Generator | None = None
) -> float:
    r"""Total correlation of the aggregate posterior, :math:`\mathbb{E}[\log q(z) - \sum_d \log q(z_d)]`, in nats.

    z is drawn once for each sample of the data set, and q(z) estimated within shuffled batches by
    :func:`genmod.ops.total_correlation` with stratified weights: exact but for the drawing of z where one batch holds
    all samples; otherwise the densities are estimated from a part and their logarithms biased, which usually makes
    the total correlation come out smaller in high dimensions.

    Args:
        mean, logvar: `[N, D]`, the posteriors of all samples, array or tensor.
        batch_size: samples in each batch, at least 2; a smaller rest is left out.
        generator: of the draws; torch's default one if omitted.

    Raises:
        TypeError: not arrays or tensors.
        ValueError: not matrices of one shape, or a `batch_size` below 2.
    """
    mu, log_variance = posterior(mean, logvar)
    if batch_size < 2:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 2")
    count = len(mu)
    size = min(batch_size, count)
    order = torch.randperm(count, generator=generator, device="cpu")
    z = mu + (0.5 * log_variance).exp() * torch.randn(mu.shape, generator=generator, dtype=mu.dtype, device="cpu")
    parts = [
        ops.total_correlation(z[rows], mu[rows], log_variance[rows], dataset_size=count)[1]
        for rows in order[: count - count % size].split(size)
    ]
    return float(torch.stack(parts).mean())
