"""The few-labels curve: the labels it takes, what it measures, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genmod.recipes import RecipeError, few_labels
from genmod.recipes.few_labels import Labelled
from genmod.recipes.representation import features, knn_accuracy, linear_probe, stratified


class Seeing(nn.Module):
    """Features that give the class away, or only noise."""

    num_features = 3

    def __init__(self, seed: int, sees: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(16, 3)
        self.dropout = nn.Dropout(0.5)
        if sees:
            with torch.no_grad():
                self.linear.weight.zero_()[:, :3] = 5 * torch.eye(3)
        else:
            with torch.no_grad():
                self.linear.weight[:, :3] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear(x.flatten(1)))


def toy(n: int, seed: int) -> Labelled:
    """Images whose first three pixels say their class, all others noise."""
    labels = torch.arange(n) % 3
    images = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    images.flatten(1)[:, :3] = nn.functional.one_hot(labels, 3).float()
    return Labelled(images, labels)


ENCODERS = {"random": lambda seed: Seeing(seed, False), "seeing": lambda seed: Seeing(seed, True)}


def test_every_class_has_its_share_of_the_labels() -> None:
    labels = torch.tensor([0] * 100 + [1] * 40 + [2] * 3)[torch.randperm(143)]
    for fraction, counts in [(0.01, [1, 1, 1]), (0.05, [5, 2, 1]), (0.5, [50, 20, 2]), (1.0, [100, 40, 3])]:
        chosen = stratified(labels, fraction, 0)
        assert labels[chosen].bincount().tolist() == counts and len(chosen.unique()) == len(chosen)
    small, large = (set(stratified(labels, fraction, 3).tolist()) for fraction in (0.1, 0.4))
    assert small < large
    assert stratified(labels, 0.1, 3).tolist() != stratified(labels, 0.1, 4).tolist()
    with pytest.raises(RecipeError, match="fraction: got 0"):
        stratified(labels, 0, 0)


def test_features_are_taken_in_evaluation_mode() -> None:
    encoder, x = Seeing(0, True).train(), toy(30, 0).images
    assert torch.equal(features(encoder, x, batch=7), features(encoder, x))
    assert encoder.training


def test_neighbours_and_probe_tell_classes_apart_where_features_do() -> None:
    (train, labels), (test, truth) = toy(60, 0), toy(45, 1)
    for sees, low, high in [(True, 0.99, 1.0), (False, 0.1, 0.6)]:
        codes = [features(Seeing(0, sees), x) for x in (train, test)]
        assert low <= knn_accuracy(codes[0], labels, codes[1], truth) <= high
        assert low <= linear_probe(codes[0], labels, codes[1], truth) <= high
    with pytest.raises(RecipeError, match="test: got 3 features, wanted: 2"):
        linear_probe(codes[0][:, :2], labels, codes[1], truth)
    with pytest.raises(RecipeError, match="labels: got one class"):
        knn_accuracy(codes[0], labels * 0, codes[1], truth)
    with pytest.raises(RecipeError, match="train: got features of shape"):
        knn_accuracy(codes[0], labels[1:], codes[1], truth)


def test_curve(tmp_path: Path) -> None:
    lines: list[str] = []
    options = {"fractions": (0.1, 1.0), "seeds": (0, 1), "steps": 3, "report": lines.append}
    found = few_labels.curve(ENCODERS, toy(60, 0), toy(45, 1), **options)
    assert found.counts == (6, 60) and len(lines) == 4
    assert list(found.accuracy) == list(few_labels.WAYS)
    for way in ("linear probe", "nearest neighbour"):
        assert found.row(way, "seeing", 0.1).tolist() == [1.0, 1.0]
        assert (found.margin(way, "seeing", 0.1) > 0.2).all()
    assert found == few_labels.curve(ENCODERS, toy(60, 0), toy(45, 1), **{**options, "report": lambda line: None})
    found.save(tmp_path / "curve.json")
    assert json.loads((tmp_path / "curve.json").read_text())["accuracy"] == found.accuracy
    few_labels.save_figure(tmp_path / "curve.png", found)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "| linear probe | seeing | 100.0 ± 0.0 |" in found.table()


def test_curve_refuses() -> None:
    with pytest.raises(RecipeError, match="wanted: one named 'random'"):
        few_labels.curve({"seeing": ENCODERS["seeing"]}, toy(9, 0), toy(9, 1))
    with pytest.raises(RecipeError, match="ways: got guess"):
        few_labels.curve(ENCODERS, toy(9, 0), toy(9, 1), ways=("guess",))
    with pytest.raises(RecipeError, match="empty"):
        few_labels.curve(ENCODERS, toy(9, 0), toy(9, 1), seeds=())


def test_fine_tuning_learns_and_leaves_the_encoder() -> None:
    encoder = Seeing(0, False)
    before = encoder.linear.weight.clone()
    assert few_labels.finetune(encoder, toy(60, 0), toy(45, 1), seed=0, steps=500) > 0.8
    assert torch.equal(encoder.linear.weight, before)


def test_test_digits_are_not_among_those_to_train_on() -> None:
    train, test = few_labels.labelled_digits()
    assert len(train.images) + len(test.images) == 1797 and len(test.images) == len(test.labels) == 360
    assert not {x.numpy().tobytes() for x in train.images} & {x.numpy().tobytes() for x in test.images}
    assert train.labels.bincount().min() > 100


def test_the_documented_table_is_that_of_the_committed_run() -> None:
    root = Path(__file__).resolve().parents[2]
    found = few_labels.Curve(**json.loads((root / "benchmarks/results/few_labels/digits.json").read_text()))
    assert found.table() in (root / "docs/few_labels.md").read_text()
    # What README.md and the page say: with 5 % of the labels better in every seed, and by more than the seeds spread.
    for way in ("nearest neighbour", "linear probe"):
        margin = found.margin(way, "denoising", 0.05)
        assert len(margin) == 5 and margin.min() > 0 and margin.mean() > margin.std()
