"""Each metric on codes whose score is known: by construction, in closed form, or by enumeration."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from genmod.latent import metrics

SIZES = (3, 4, 5)
GRID = np.array(list(product(*(range(n) for n in SIZES)))).repeat(20, axis=0)  # each combination equally often
RNG = np.random.default_rng(0)
PERFECT = GRID * [2.0, -1.0, 0.5] + [0.0, 3.0, -1.0]  # an axis per factor, whatever its scale and sign
NOISE = RNG.normal(size=(len(GRID), 4))


def rotated(codes: np.ndarray) -> np.ndarray:
    """The first two axes turned by 45 degrees, where each has the same share in both factors."""
    z = (codes - codes.mean(0)) / codes.std(0)
    turned = z.copy()
    turned[:, 0], turned[:, 1] = (z[:, 0] + z[:, 1]) / math.sqrt(2), (z[:, 0] - z[:, 1]) / math.sqrt(2)
    return turned


def dci_disentanglement(codes: np.ndarray) -> float:
    return metrics.dci(codes, GRID, trees=10).disentanglement


def mig_of_narrow_posterior(codes: np.ndarray) -> float:
    logvar = np.full(codes.shape, -8.0)
    return metrics.mig_of_posterior(codes, logvar, GRID, samples=400, generator=torch.Generator().manual_seed(0)).score


SCORES = {
    "mig": lambda codes: metrics.mig(codes, GRID).score,
    "mig_of_posterior": mig_of_narrow_posterior,
    "sap": lambda codes: metrics.sap(codes, GRID, continuous=True).score,
    "dci": dci_disentanglement,
}


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_an_axis_for_each_factor_scores_one(score):
    assert score(PERFECT) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_rotated_axes_score_lower(score):
    # Two of three factors lose all their gap at 45 degrees, up to what asymmetric value grids leave.
    assert score(rotated(PERFECT)) < 0.65


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_the_order_of_the_axes_does_not_matter(score):
    some = rotated(PERFECT)
    assert score(some[:, [2, 0, 1]]) == pytest.approx(score(some), abs=0.03)


@pytest.mark.parametrize("name", ["mig", "sap", "mig_of_posterior"])
def test_a_second_copy_of_a_code_closes_the_gap(name):
    # A third of the gaps is lost; DCI's disentanglement, which asks only what each code is for, does not mind.
    twice = np.concatenate([PERFECT, PERFECT[:, :1]], 1)
    assert SCORES[name](twice) == pytest.approx(2 / 3, abs=0.03)


def test_noise_scores_nothing():
    assert metrics.mig(NOISE, GRID).score < 0.03
    assert metrics.sap(NOISE, GRID, continuous=True).score < 0.01
    assert metrics.sap(NOISE, GRID).score < 0.06
    many = RNG.normal(size=(4000, 6))
    factors = RNG.integers(0, 4, size=(4000, 3))
    result = metrics.dci(many, factors, trees=20, depth=2)
    assert result.disentanglement < 0.15 and result.completeness < 0.2
    assert result.informativeness == pytest.approx(1 / 4, abs=0.05)  # what guessing scores
    logvar = np.zeros(NOISE.shape)
    posterior = metrics.mig_of_posterior(NOISE, logvar, GRID, samples=500, generator=torch.Generator().manual_seed(0))
    assert abs(posterior.score) < 0.02


def test_unused_codes_change_nothing():
    padded = np.concatenate([PERFECT, np.full((len(GRID), 2), 0.3)], 1)
    for name, score in SCORES.items():
        assert score(padded) == pytest.approx(1.0, abs=0.02), name


# ------------------------------------------------------------------------------------------------------------------ MIG


def test_mig_counts_information_in_nats():
    result = metrics.mig(PERFECT, GRID)
    assert result.entropy == pytest.approx(np.log(SIZES))
    assert np.diag(result.information) == pytest.approx(np.log(SIZES))
    off = result.information[~np.eye(3, dtype=bool)]
    assert off == pytest.approx(np.zeros(6), abs=1e-12)  # the grid is balanced


def test_mig_of_a_half_known_factor():
    """Four equally likely values of which the code tells pairs apart: half of the entropy, 1 of 2 bits."""
    factors = np.stack([np.arange(400) % 4, np.arange(400) // 4 % 4], 1)
    codes = np.stack([factors[:, 0] // 2, factors[:, 1]], 1).astype(float)
    assert metrics.mig(codes, factors).per_factor == pytest.approx([0.5, 1.0])


def test_information_of_posteriors_against_quadrature():
    """Two values, two unit Gaussians d apart: I = log 2 - E[H(v | z)], integrated on a fine grid."""
    distance, count = 1.5, 60
    v = np.arange(count) % 2
    factors = np.stack([v, np.arange(count) // 2 % 2], 1)
    mean = np.stack([v * distance, np.zeros(count)], 1)
    z = np.linspace(-10, 12, 200_001)
    densities = np.stack([np.exp(-0.5 * (z - m) ** 2) / math.sqrt(2 * math.pi) for m in (0.0, distance)])
    marginal = densities.mean(0)
    exact = np.trapezoid(0.5 * (densities * np.log(densities / marginal)).sum(0), z)
    result = metrics.mig_of_posterior(
        mean, np.zeros_like(mean), factors, samples=40_000, generator=torch.Generator().manual_seed(0), chunk=5000
    )
    assert result.information[0, 0] == pytest.approx(exact, abs=0.008)
    assert result.information[0, 1] == pytest.approx(0, abs=1e-9)  # equal densities: zero for every draw
    assert result.information[1] == pytest.approx([0, 0], abs=1e-9)


def test_posterior_noise_drowns_what_bins_still_see():
    """Means that differ by a hundredth of the posterior's width: full marks by the bins, none by the paper."""
    small = PERFECT * 0.01
    assert metrics.mig(small, GRID).score == pytest.approx(1.0)
    generator = torch.Generator().manual_seed(0)
    result = metrics.mig_of_posterior(small, np.zeros_like(small), GRID, samples=300, generator=generator)
    assert abs(result.score) < 0.01


def test_posteriors_far_apart_do_not_underflow():
    far = PERFECT * 1e4
    result = metrics.mig_of_posterior(
        far, np.full(far.shape, -20.0), GRID, samples=200, generator=torch.Generator().manual_seed(0)
    )
    assert result.score == pytest.approx(1.0, abs=0.05) and np.isfinite(result.information).all()


def test_chunks_change_nothing():
    scores = [
        metrics.mig_of_posterior(
            NOISE, NOISE, GRID, samples=100, generator=torch.Generator().manual_seed(1), chunk=chunk
        ).information
        for chunk in (100, 7)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-12)


# ------------------------------------------------------------------------------------------------------------------ DCI


def test_dci_of_known_importances():
    """Entropies by hand: a code shared evenly by two of three factors has D = 1 - log_3 2."""
    from genmod.latent.metrics.dci import _entropy

    importance = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    assert 1 - _entropy(importance) == pytest.approx([1 - math.log(2, 3), 1.0, 0.0])


def test_dci_completeness_falls_where_a_factor_is_spread():
    split = np.concatenate([PERFECT + 0.5 * RNG.normal(size=PERFECT.shape) for _ in range(2)], 1)
    whole = metrics.dci(PERFECT, GRID, trees=10)
    result = metrics.dci(split, GRID, trees=10)
    assert whole.completeness == pytest.approx(1, abs=0.02) and whole.informativeness == pytest.approx(1, abs=0.02)
    assert result.completeness < 0.65 < result.disentanglement + 0.1
    assert result.importance.shape == (6, 3)


@pytest.mark.parametrize("regressor", ["boosting", "lasso"])
def test_dci_regressors_agree_on_the_clear_cases(regressor):
    perfect = metrics.dci(PERFECT, GRID, regressor=regressor, trees=5)
    assert perfect.disentanglement == pytest.approx(1, abs=0.02)
    assert perfect.completeness == pytest.approx(1, abs=0.02)
    turned = metrics.dci(rotated(PERFECT), GRID, regressor=regressor, trees=5)
    assert turned.disentanglement < 0.8 * perfect.disentanglement


def test_lasso_on_useless_codes_is_no_error():
    result = metrics.dci(np.full((len(GRID), 3), 1.5), GRID, regressor="lasso")
    assert (result.disentanglement, result.completeness) == (0.0, 0.0)


# ------------------------------------------------------------------------------------------------------------------ SAP


def test_sap_of_a_continuous_factor_is_a_difference_of_squared_correlations():
    factor = RNG.integers(0, 50, size=(5000, 1))
    codes = factor + np.array([5.0, 20.0]) * RNG.normal(size=(5000, 2))
    squared = [np.corrcoef(codes[:, i], factor[:, 0])[0, 1] ** 2 for i in (0, 1)]
    result = metrics.sap(codes, factor, continuous=True)
    assert result.predictability[:, 0] == pytest.approx(squared)
    assert result.score == pytest.approx(squared[0] - squared[1])


def test_sap_of_a_categorical_factor_reaches_one_minus_chance():
    result = metrics.sap(PERFECT, GRID)
    assert np.diag(result.predictability) == pytest.approx(np.ones(3))
    assert result.per_factor == pytest.approx([1 - 1 / n for n in SIZES], abs=0.08)


def test_sap_kinds_by_factor():
    mixed = metrics.sap(PERFECT, GRID, continuous=[False, True, True])
    assert mixed.per_factor[1:] == pytest.approx([1, 1])
    assert mixed.per_factor[0] == pytest.approx(1 - 1 / 3, abs=0.08)


def test_one_line_against_the_rest_cannot_tell_middle_values():
    values = metrics.sap(PERFECT, GRID, classifier="svm").predictability
    assert values[2, 2] < 0.9 < metrics.sap(PERFECT, GRID).predictability[2, 2]
    two = (GRID[:, :2] > 1).astype(int)  # with two values a line is all that is needed
    assert np.diag(metrics.sap(two + 0.0, two, classifier="svm").predictability) == pytest.approx([1, 1])


# ---------------------------------------------------------------------------------------------------- total correlation


def test_gaussian_total_correlation_of_a_known_covariance():
    """Samples whitened and coloured again: their covariance is the wanted one to rounding. TC = -log(1 - r²) / 2."""
    z = RNG.normal(size=(500, 2))
    z -= z.mean(0)
    white = z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / len(z))).T
    r = 0.8
    coloured = white @ np.linalg.cholesky(np.array([[1, r], [r, 1]])).T * [3.0, 0.1]
    assert metrics.gaussian_total_correlation(coloured) == pytest.approx(-0.5 * math.log(1 - r * r))
    assert metrics.gaussian_total_correlation(white) == pytest.approx(0, abs=1e-9)
    constant = np.concatenate([coloured, np.full((500, 1), 0.1)], 1)
    assert metrics.gaussian_total_correlation(constant) == pytest.approx(-0.5 * math.log(1 - r * r))


def test_linearly_dependent_codes_have_infinite_total_correlation():
    z = RNG.normal(size=(50, 2))
    assert metrics.gaussian_total_correlation(np.concatenate([z, z.sum(1, keepdims=True)], 1)) == math.inf


def test_posterior_total_correlation_of_gaussians():
    """Means on a line plus posterior noise: nearly a Gaussian with correlation 1 / (1 + variance)."""
    n, variance = 2000, 0.5
    line = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(n) + 0.5) / n)
    mean = torch.stack([line, line], 1)
    logvar = torch.full_like(mean, math.log(variance))
    r = 1 / (1 + variance)
    found = metrics.posterior_total_correlation(mean, logvar, generator=torch.Generator().manual_seed(0))
    assert found == pytest.approx(-0.5 * math.log(1 - r * r), abs=0.04)
    apart = mean.clone()
    apart[:, 1] = apart[torch.randperm(n, generator=torch.Generator().manual_seed(1)), 1]
    found = metrics.posterior_total_correlation(
        apart, logvar, batch_size=1000, generator=torch.Generator().manual_seed(0)
    )
    assert found == pytest.approx(0, abs=0.04)


# --------------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("metric", [metrics.mig, metrics.dci, metrics.sap])
def test_tensors_and_arrays_score_the_same_and_twice_the_same(metric):
    noisy = PERFECT + NOISE[:, :3]
    first = metric(noisy, GRID)
    assert metric(noisy, GRID)[0] == first[0]
    assert metric(torch.from_numpy(noisy), torch.from_numpy(GRID))[0] == first[0]
    assert metric(noisy, GRID * 7 - 3)[0] == first[0]  # values are names, in their order


@pytest.mark.parametrize("metric", [metrics.mig, metrics.dci, metrics.sap])
@pytest.mark.parametrize(
    ("codes", "factors", "error", "message"),
    [
        (PERFECT, GRID[:-1], ValueError, "factors: got 1199 rows"),
        (PERFECT, GRID + 0.5, TypeError, "factors: got dtype float64"),
        (PERFECT, np.concatenate([GRID[:, :1] * 0, GRID], 1), ValueError, "column 0 has one value"),
        (PERFECT[:, :1], GRID, ValueError, "at least 2"),
        (PERFECT * np.nan, GRID, ValueError, "not finite"),
        (PERFECT[0], GRID, ValueError, "codes: got shape"),
        (PERFECT.tolist(), GRID, TypeError, "codes: got list"),
    ],
)
def test_bad_codes_and_factors(metric, codes, factors, error, message):
    with pytest.raises(error, match=message):
        metric(codes, factors)


def test_bad_options():
    with pytest.raises(ValueError, match="bins: got 1"):
        metrics.mig(PERFECT, GRID, bins=1)
    with pytest.raises(ValueError, match="regressor: got 'tree'"):
        metrics.dci(PERFECT, GRID, regressor="tree")
    with pytest.raises(ValueError, match="one column"):
        metrics.dci(PERFECT, GRID[:, :1])
    with pytest.raises(ValueError, match="classifier: got 'line'"):
        metrics.sap(PERFECT, GRID, classifier="line")
    with pytest.raises(ValueError, match="continuous: got 2 values"):
        metrics.sap(PERFECT, GRID, continuous=[True, False])
    with pytest.raises(ValueError, match="test_share: got 1"):
        metrics.sap(PERFECT, GRID, test_share=1)
    with pytest.raises(ValueError, match="logvar: got shape"):
        metrics.mig_of_posterior(PERFECT, PERFECT[:, :2], GRID)
    with pytest.raises(ValueError, match="samples and chunk"):
        metrics.mig_of_posterior(PERFECT, PERFECT, GRID, samples=0)
    with pytest.raises(ValueError, match="batch_size: got 1"):
        metrics.posterior_total_correlation(PERFECT, PERFECT, batch_size=1)
    with pytest.raises(ValueError, match="more rows than columns"):
        metrics.gaussian_total_correlation(PERFECT[:2])
