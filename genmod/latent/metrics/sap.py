"""Separated attribute predictability (SAP): is the best code for a factor much better than the next?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from genmod.latent._need import need
from genmod.latent.metrics._inputs import codes_and_factors, split, top_two

Classifier = Literal["thresholds", "svm"]
CLASSIFIERS = ("thresholds", "svm")


class SAP(NamedTuple):
    """`score` is the mean of `per_factor` [K], the gaps; `predictability` [D, K] is the paper's S."""

    score: float
    per_factor: np.ndarray
    predictability: np.ndarray


def sap(
    codes: Any,
    factors: Any,
    *,
    continuous: bool | Sequence[bool] = False,
    classifier: Classifier = "thresholds",
    test_share: float = 0.2,
    seed: int = 0,
) -> SAP:
    r"""The mean over factors of the gap between the two codes, each by itself, that predict the factor best.

    For a continuous factor the prediction is linear and its score
    :math:`R^2 = \mathrm{Cov}(z_i, v_j)^2 / (\mathrm{Var}(z_i)\,\mathrm{Var}(v_j))`. For a categorical one it is a
    classifier of the one number z_i, and the score its balanced accuracy on held-out samples, so that guessing scores
    1 / values and the largest possible gap is 1 - 1 / values. A code that is constant scores zero.

    Args:
        codes: `[N, D]`, D >= 2, array or tensor.
        factors: `[N, K]` integers, at least two values in each column.
        continuous: whether the values of the factors (of each factor, if a sequence) are positions on a scale with
            equal steps.
        classifier: "thresholds", as in the paper: cuts of the code with the least balanced error, at most one fewer
            than there are values, found greedily by a decision tree; or "svm", a linear support vector machine with
            one class against the rest and C = 0.01, which Locatello et al. use for every factor (with plain accuracy).
            From a single number such a machine cannot tell values in the middle of a scale from those around them:
            a perfect code of a factor with many values then scores far below 1.
        test_share: of the samples, for scoring classifiers; the others are fitted.
        seed: of the split.

    Raises:
        TypeError: not arrays or tensors, or factors that are not integers.
        ValueError: shapes that do not fit, codes that are not finite, one code only, a factor with one value, a
            sequence `continuous` of another length, or an unknown `classifier`.
        ModuleNotFoundError: a categorical factor, and scikit-learn is not installed.

    Sources: Kumar et al., *Variational inference of disentangled latent concepts from unlabeled observations*,
    ICLR 2018, arXiv:1711.00848, section 3; Locatello et al., ICML 2019, arXiv:1811.12359.
    """
    z, v = codes_and_factors(codes, factors, least_codes=2)
    if classifier not in CLASSIFIERS:
        raise ValueError(f"classifier: got {classifier!r}, expected one of {', '.join(map(repr, CLASSIFIERS))}")
    kinds = [continuous] * v.shape[1] if isinstance(continuous, bool) else list(continuous)
    if len(kinds) != v.shape[1]:
        raise ValueError(f"continuous: got {len(kinds)} values, expected one for each of {v.shape[1]} factors")
    # "Close to constant" has to be relative: rounding leaves a constant code a spread.
    active = z.std(0) > 1e-9 * np.abs(z).max(0, initial=0.0)
    fit, test = split(len(z), test_share, seed)
    scores = np.zeros((z.shape[1], v.shape[1]))
    for j in np.flatnonzero(active):
        code = (z[:, j] - z[:, j].mean()) / z[:, j].std()
        for k, target in enumerate(v.T):
            if kinds[k]:
                scores[j, k] = np.mean(code * (target - target.mean()) / target.std()) ** 2
            else:
                model = _classifier(classifier, int(target.max()) + 1, seed).fit(code[fit, None], target[fit])
                scores[j, k] = _balanced_accuracy(target[test], model.predict(code[test, None]))
    first, second = top_two(scores)
    return SAP(float((first - second).mean()), first - second, scores)


def _classifier(kind: Classifier, values: int, seed: int) -> Any:
    if kind == "svm":
        return need("sklearn.svm").LinearSVC(C=0.01, class_weight="balanced", random_state=seed)
    return need("sklearn.tree").DecisionTreeClassifier(
        max_leaf_nodes=values, class_weight="balanced", random_state=seed
    )


def _balanced_accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The mean over the values that occur of the share of their samples that were recognised."""
    return float(np.mean([(predicted[truth == value] == value).mean() for value in np.unique(truth)]))
