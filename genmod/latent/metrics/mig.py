"""Mutual information gap (MIG): does one latent, and one alone, know a factor?"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from genmod.latent.metrics._inputs import codes_and_factors, posterior, top_two

LOG_2PI = float(np.log(2 * np.pi))


class MIG(NamedTuple):
    """`score` is the mean of `per_factor` [K]; `information` [D, K] has I(z_j; v_k) in nats, `entropy` [K] H(v_k)."""

    score: float
    per_factor: np.ndarray
    information: np.ndarray
    entropy: np.ndarray


def mig(codes: Any, factors: Any, *, bins: int = 20) -> MIG:
    r"""The gap from histograms of the codes, the protocol of Locatello et al.

    .. math::
        \mathrm{MIG} = \frac1K \sum_k \frac{1}{H(v_k)}
            \left(I(z_{j_1}; v_k) - I(z_{j_2}; v_k)\right)

    with :math:`j_1, j_2` the two latents that know most about factor k. Each code (the posterior's mean, usually) is
    cut into `bins` intervals of equal width between its extremes, and information is that of the joint counts.

    Chen et al. define it otherwise: with samples of q(z|x) instead of means, and without bins. That is
    :func:`mig_of_posterior`. The histogram also gives a latent that carries next to nothing its own 20 bins, however
    small its range, and so can see information in a mean that the posterior's noise drowns; it is biased up by about
    (bins - 1)(values - 1) / 2N nats for each pair.

    Args:
        codes: `[N, D]`, D >= 2, array or tensor.
        factors: `[N, K]` integers, at least two values in each column.
        bins: number of intervals.

    Raises:
        TypeError: not arrays or tensors, or factors that are not integers.
        ValueError: shapes that do not fit, codes that are not finite, one code only, a factor with one value, or
            fewer than two bins.

    Sources: Chen et al., *Isolating sources of disentanglement in variational autoencoders*, NeurIPS 2018,
    arXiv:1802.04942; bins: Locatello et al., *Challenging common assumptions*, ICML 2019, arXiv:1811.12359.
    """
    z, v = codes_and_factors(codes, factors, least_codes=2)
    if bins < 2:
        raise ValueError(f"bins: got {bins}, expected at least 2")
    binned = np.stack([_bin(column, bins) for column in z.T], 1)
    information = np.array([[discrete_information(b, f) for f in v.T] for b in binned.T])
    return _gap(information, v)


def mig_of_posterior(
    mean: Any,
    logvar: Any,
    factors: Any,
    *,
    samples: int = 10_000,
    generator: torch.Generator | None = None,
    chunk: int = 256,
) -> MIG:
    r"""The gap as Chen et al. define it, from the posteriors q(z|x) of a whole data set.

    .. math::
        I(z_j; v_k) = \mathbb{E}\left[\log \sum_{n \in X_v} q(z_j|n)\, p(n|v) - \log \sum_n q(z_j|n)\, p(n)\right]

    over n drawn from the data set, z_j from q(z_j|n), v the value of v_k at n and X_v the samples that share it. Both
    sums run over the whole set and are exact (in float64); the expectation is the mean over `samples` draws, whose
    standard error is below log(N) / (2 sqrt(samples)) nats. Time is O(samples N D), memory O(chunk N).

    Args:
        mean, logvar: `[N, D]`, D >= 2: the posteriors of all N samples, each once. The data set is its own p(n), so
            a factor's values weigh as often as they occur.
        factors: `[N, K]` integers.
        samples: how many draws, 10 000 in the paper; each sample of the data set is drawn about equally often.
        generator: of the draws; torch's default one if omitted.
        chunk: draws at once.

    Raises:
        TypeError, ValueError: as :func:`mig`; shapes of `mean` and `logvar` that differ; fewer than one draw.

    Source: Chen et al., NeurIPS 2018, arXiv:1802.04942, section 4.1.
    """
    mu, log_variance = posterior(mean, logvar)
    v = codes_and_factors(mu, factors, least_codes=2)[1]
    if samples < 1 or chunk < 1:
        raise ValueError(f"samples and chunk: got {samples} and {chunk}, expected at least 1")
    count, size = mu.shape
    rounds = [torch.randperm(count, generator=generator, device="cpu") for _ in range(-(-samples // count))]
    rows = torch.cat(rounds)[:samples]
    noise = torch.randn(samples, size, generator=generator, dtype=torch.float64, device="cpu")
    z = mu[rows] + (0.5 * log_variance[rows]).exp() * noise

    # A column for each value of each factor: the densities times this matrix are all the sums over X_v.
    groups = [torch.nn.functional.one_hot(torch.from_numpy(column)).double() for column in v.T]
    offsets = np.cumsum([0, *[g.shape[1] for g in groups[:-1]]])
    members = torch.cat(groups, 1)
    own = torch.from_numpy(v + offsets)[rows]  # [samples, K]: which columns each draw belongs to
    information = torch.zeros(size, v.shape[1], dtype=torch.float64, device="cpu")
    for first in range(0, samples, chunk):
        mine = own[first : first + chunk]
        for j in range(size):
            difference = z[first : first + chunk, j, None] - mu[:, j]
            log_density = -0.5 * (difference.square() * (-log_variance[:, j]).exp() + log_variance[:, j] + LOG_2PI)
            # Relative to the density of the draw's own sample, which is in every sum that is taken: none is zero.
            reference = log_density.gather(1, rows[first : first + chunk, None])
            density = (log_density - reference).clamp_(max=600.0).exp_()
            sums = (density @ members).gather(1, mine)
            conditional = sums.log() - members.sum(0)[mine].log()
            marginal = density.sum(1, keepdim=True).log() - float(np.log(count))
            information[j] += (conditional - marginal).sum(0)
    return _gap((information / samples).numpy(), v)


def discrete_information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information in nats of two columns of integers from 0 on, from their joint counts."""
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / product[seen])).sum())


def entropy(column: np.ndarray) -> float:
    """Entropy in nats of a column of integers from 0 on."""
    return discrete_information(column, column)


def _bin(column: np.ndarray, bins: int) -> np.ndarray:
    low, high = column.min(), column.max()
    if low == high:
        return np.zeros(len(column), np.int64)
    edges = np.linspace(low, high, bins + 1)
    return np.digitize(column, edges[1:-1])  # the last interval includes its right end


def _gap(information: np.ndarray, v: np.ndarray) -> MIG:
    entropies = np.array([entropy(column) for column in v.T])
    first, second = top_two(information)
    per_factor = (first - second) / entropies
    return MIG(float(per_factor.mean()), per_factor, information, entropies)
