"""What features are worth: the nearest neighbours of an image, and a linear classifier, by scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from genmod.recipes import RecipeError, need


@torch.no_grad()
def features(encoder: nn.Module, images: Tensor, batch: int = 512) -> Tensor:
    """The encoder's features of images, in evaluation mode, `[N, D]` on the CPU in float32."""
    weight = next(encoder.parameters())
    training = encoder.training
    encoder.eval()
    try:
        return torch.cat([encoder(part.to(weight)).flatten(1).float().cpu() for part in images.split(batch)])
    finally:
        encoder.train(training)


def knn_accuracy(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, neighbors: int = 5) -> float:
    """The part of the test features whose nearest training features, by cosine, mostly have their label.

    Args:
        train, test: features `[N, D]`, as :func:`features` gives them.
        labels, test_labels: integers `[N]`.
        neighbors: how many have a vote; fewer where there are not so many.
    """
    _check(train, labels, test, test_labels)
    if neighbors < 1:
        raise RecipeError(f"neighbors: got {neighbors}, wanted: at least 1")
    votes = min(neighbors, len(train))
    classifier = need("sklearn.neighbors").KNeighborsClassifier(votes, metric="cosine")
    return float(classifier.fit(train.numpy(), labels.numpy()).score(test.numpy(), test_labels.numpy()))


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, strength: float = 1.0) -> float:
    """The accuracy on test features of a logistic regression on standardised training features.

    Args:
        train, test: features `[N, D]`, as :func:`features` gives them.
        labels, test_labels: integers `[N]`.
        strength: of the L2 penalty; scikit-learn's 1 / C.
    """
    _check(train, labels, test, test_labels)
    # By the training features alone. One that never changes stays zero.
    mean, scale = train.mean(0), train.std(0, correction=0)
    scale = torch.where(scale > 1e-6, scale, torch.ones_like(scale))
    classifier = need("sklearn.linear_model").LogisticRegression(C=1 / strength, max_iter=2000)
    classifier.fit(((train - mean) / scale).numpy(), labels.numpy())
    return float(classifier.score(((test - mean) / scale).numpy(), test_labels.numpy()))


def stratified(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Numbers of a random part of the samples in which every class has its share, and at least one sample.

    A larger fraction with the same seed holds all of a smaller one.
    """
    if not 0 < fraction <= 1:
        raise RecipeError(f"fraction: got {fraction}, wanted: a number in (0, 1]")
    draw = np.random.default_rng(seed)
    taken = []
    for label in np.unique(labels.numpy()):
        members = draw.permutation(np.flatnonzero(labels.numpy() == label))
        taken.append(members[: max(1, round(fraction * len(members)))])
    return torch.from_numpy(np.sort(np.concatenate(taken)))


def _check(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> None:
    for name, rows, marks in (("train", train, labels), ("test", test, test_labels)):
        if rows.dim() != 2 or marks.shape != rows.shape[:1]:
            raise RecipeError(
                f"{name}: got features of shape {tuple(rows.shape)} and labels of shape {tuple(marks.shape)}, wanted: "
                "[N, D] and [N]"
            )
    if train.shape[1] != test.shape[1]:
        raise RecipeError(f"test: got {test.shape[1]} features, wanted: {train.shape[1]}, as train has")
    if len(labels.unique()) < 2:
        raise RecipeError("labels: got one class, wanted: at least two to tell apart")
