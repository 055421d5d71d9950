"""Where codes come from: the prior, the aggregate posterior, or a mixture of Gaussians fitted to codes.

The prior is what a model was told its codes would be; the aggregate posterior, the mixture of q(z|x) over a data set,
is what they are. Where the two differ, samples from the prior decode to images unlike any that the decoder has seen,
and a mixture fitted to the codes does better (Ghosh et al., *From variational to deterministic autoencoders*,
ICLR 2020, arXiv:1903.12436).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from genmod.latent._need import need

Covariance = Literal["full", "diag"]
COVARIANCES = ("full", "diag")


def from_prior(model: Any, n: int, generator: torch.Generator | None = None) -> Tensor:
    """n codes from the model's prior, `[n, D]`."""
    _check_count(n)
    return model.prior(n, generator)


def from_aggregate_posterior(
    mean: Tensor, logvar: Tensor | None, n: int, generator: torch.Generator | None = None
) -> Tensor:
    """n codes from the mixture of the posteriors of a data set, `[n, D]`.

    Args:
        mean, logvar: `[N, D]`; with `logvar` None the codes themselves are drawn, as for a plain autoencoder.
        n: how many. No posterior is drawn from a second time before all others were drawn from once.
        generator: a CPU generator, whatever the device of the posteriors, so that a seed means the same on every
            device; torch's default one if omitted.

    Raises:
        ValueError: shapes that differ, no posteriors, or a negative `n`.
    """
    _check_count(n)
    if mean.dim() != 2 or not len(mean) or (logvar is not None and logvar.shape != mean.shape):
        got = None if logvar is None else tuple(logvar.shape)
        raise ValueError(f"mean, logvar: got shapes {tuple(mean.shape)} and {got}, expected [N, D] twice, N >= 1")
    rounds = [torch.randperm(len(mean), generator=generator, device="cpu") for _ in range(-(-n // len(mean)))]
    rows = torch.cat([*rounds, torch.empty(0, dtype=torch.int64, device="cpu")])[:n].to(mean.device)
    if logvar is None:
        return mean[rows]
    noise = torch.randn(n, mean.shape[1], generator=generator, device="cpu").to(mean)
    return mean[rows] + (0.5 * logvar[rows]).exp() * noise


@dataclass(frozen=True)
class GaussianMixture:
    """weights `[k]`, means `[k, D]` and factors `[k, D, D]`: covariance c is `factors[c] @ factors[c].T`."""

    weights: Tensor
    means: Tensor
    factors: Tensor

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n codes `[n, D]`; the generator is a CPU one, and a seed means the same on every device."""
        _check_count(n)
        if not n:
            return self.means[:0]
        chosen = torch.multinomial(self.weights.cpu().double(), n, replacement=True, generator=generator)
        chosen = chosen.to(self.means.device)
        noise = torch.randn(n, self.means.shape[1], generator=generator, device="cpu").to(self.means)
        return self.means[chosen] + (self.factors[chosen] @ noise[..., None]).squeeze(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats of codes `[..., D]`; differentiable."""
        each = torch.distributions.MultivariateNormal(self.means, scale_tril=self.factors, validate_args=False)
        return (each.log_prob(z[..., None, :]) + self.weights.log()).logsumexp(-1)


def fit_mixture(codes: Tensor, k: int = 10, *, covariance: Covariance = "full", seed: int = 0) -> GaussianMixture:
    """A mixture of k Gaussians fitted to codes `[N, D]`, N >= k, by scikit-learn (expectation maximisation).

    Args:
        codes: the codes.
        k: number of Gaussians; 1 is the Gaussian with the codes' mean and covariance.
        covariance: "full", or "diag" for axis-aligned ones, for which far fewer codes do.
        seed: of the initialisation.

    Returns:
        The mixture, with the dtype and device of `codes`.

    Raises:
        ValueError: not a matrix, fewer codes than Gaussians, no Gaussian, codes that are not finite, or an unknown
            `covariance`.
        ModuleNotFoundError: scikit-learn is not installed.
    """
    if codes.dim() != 2 or not 1 <= k <= len(codes):
        raise ValueError(f"k: got {k} Gaussians for codes of shape {tuple(codes.shape)}, expected 1 to N of [N, D]")
    if covariance not in COVARIANCES:
        raise ValueError(f"covariance: got {covariance!r}, expected one of {', '.join(map(repr, COVARIANCES))}")
    mixture = need("sklearn.mixture").GaussianMixture(k, covariance_type=covariance, random_state=seed)
    mixture.fit(codes.detach().double().cpu().numpy())
    covariances = torch.from_numpy(mixture.covariances_)
    factors = torch.linalg.cholesky(covariances if covariance == "full" else covariances.diag_embed())
    weights = torch.from_numpy(mixture.weights_)
    return GaussianMixture(weights.to(codes), torch.from_numpy(mixture.means_).to(codes), factors.to(codes))


def _check_count(n: Any) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ValueError(f"n: got {n!r}, expected an integer of at least 0")
