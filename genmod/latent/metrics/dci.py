"""Disentanglement, completeness and informativeness (DCI): who needs which code to predict which factor."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from genmod.latent._need import need
from genmod.latent.metrics._inputs import codes_and_factors, split

Regressor = Literal["forest", "boosting", "lasso"]
REGRESSORS = ("forest", "boosting", "lasso")


class DCI(NamedTuple):
    """The three scores, each in [0, 1] for classifiers, and what they are made of.

    `importance` [D, K] is R, `code_disentanglement` [D] and `factor_completeness` [K] the terms of the two weighted
    means, `factor_score` [K] the accuracy (R² for "lasso") on held-out samples.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importance: np.ndarray
    code_disentanglement: np.ndarray
    factor_completeness: np.ndarray
    factor_score: np.ndarray


def dci(
    codes: Any,
    factors: Any,
    *,
    regressor: Regressor = "forest",
    trees: int = 50,
    depth: int | None = 8,
    alpha: float = 0.02,
    test_share: float = 0.2,
    seed: int = 0,
) -> DCI:
    r"""The scores of Eastwood and Williams, from the importance :math:`R_{ij}` of code i for predicting factor j.

    .. math::
        D_i = 1 - H_K(P_{i\cdot}), \quad P_{ij} = \frac{R_{ij}}{\sum_k R_{ik}}, \quad
        D = \sum_i \frac{\sum_j R_{ij}}{\sum_{ij} R_{ij}} D_i, \qquad
        C_j = 1 - H_D(\tilde P_{\cdot j}), \quad \tilde P_{ij} = \frac{R_{ij}}{\sum_d R_{dj}}

    :math:`H_K` is the entropy with logarithms of base K. Completeness is the mean of :math:`C_j` over the factors. A
    code that no factor needs has weight zero; a factor for which no code is of use has completeness zero.

    Informativeness in the paper is the prediction's error; here it is a score, higher is better: the mean over the
    factors of the accuracy on held-out samples (R² for "lasso").

    Args:
        codes: `[N, D]`, D >= 2, array or tensor; standardised before use.
        factors: `[N, K]` integers, K >= 2.
        regressor: "forest", random forests with impurity importances, the paper's second choice; "boosting",
            gradient-boosted trees, the choice of Locatello et al., many times slower; or "lasso", absolute weights of
            a linear regression, the paper's first choice, which takes the values of a factor as equally spaced
            numbers and makes no sense for one such as a shape.
        trees: number of trees in a forest, or of rounds of boosting.
        depth: of the trees, at most; the paper chooses it by validation. A deep tree fits noise with every code at
            hand, and so makes useless ones look important. Boosting takes trees of at most depth 3.
        alpha: weight of lasso's penalty, for standardised factors.
        test_share: of the samples, for informativeness; the others are fitted.
        seed: of the split and of the trees.

    Raises:
        TypeError: not arrays or tensors, or factors that are not integers.
        ValueError: shapes that do not fit, codes that are not finite, one code or one factor only, a factor with one
            value, or an unknown `regressor`.
        ModuleNotFoundError: scikit-learn is not installed.

    Sources: Eastwood and Williams, *A framework for the quantitative evaluation of disentangled representations*,
    ICLR 2018; Locatello et al., ICML 2019, arXiv:1811.12359.
    """
    z, v = codes_and_factors(codes, factors, least_codes=2)
    if v.shape[1] < 2:
        raise ValueError("factors: got one column, expected at least two")
    if regressor not in REGRESSORS:
        raise ValueError(f"regressor: got {regressor!r}, expected one of {', '.join(map(repr, REGRESSORS))}")
    spread = z.std(0)
    z = (z - z.mean(0)) / np.where(spread > 0, spread, 1)
    fit, test = split(len(z), test_share, seed)
    importance, scores = np.zeros((z.shape[1], v.shape[1])), np.zeros(v.shape[1])
    for k, target in enumerate(v.T):
        if regressor == "lasso":
            target = (target - target.mean()) / target.std()
            model = need("sklearn.linear_model").Lasso(alpha=alpha)
        elif regressor == "forest":
            forest = need("sklearn.ensemble").RandomForestClassifier
            model = forest(trees, max_depth=depth, random_state=seed)
        else:
            boosting = need("sklearn.ensemble").GradientBoostingClassifier
            model = boosting(n_estimators=trees, max_depth=min(depth or 3, 3), random_state=seed)
        model.fit(z[fit], target[fit])
        importance[:, k] = np.abs(model.coef_) if regressor == "lasso" else model.feature_importances_
        scores[k] = model.score(z[test], target[test])
    per_code, per_factor = 1 - _entropy(importance), 1 - _entropy(importance.T)
    weight = importance.sum(1)
    disentanglement = float((weight * per_code).sum() / weight.sum()) if weight.sum() > 0 else 0.0
    return DCI(
        disentanglement, per_factor.mean().item(), scores.mean().item(), importance, per_code, per_factor, scores
    )


def _entropy(importance: np.ndarray) -> np.ndarray:
    """Of each row taken as a distribution, with logarithms whose base is the row's length; a row of zeros has 1."""
    total = importance.sum(1, keepdims=True)
    share = np.divide(importance, total, out=np.full_like(importance, 1 / importance.shape[1]), where=total > 0)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return -(share * logs).sum(1) / np.log(importance.shape[1])
