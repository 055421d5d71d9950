"""The few-labels curve: what an encoder that learned without labels is worth when few images have one.

Every encoder gets the same labelled images, drawn by class; the test images take part in nothing but the score, and the
pretext task sees training images only, without their labels. `digits` is the whole experiment, and `curve` any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmod.models import transfer
from genmod.pretext import PretextConfig, PretextModel
from genmod.recipes import RecipeError, need
from genmod.recipes.representation import features, knn_accuracy, linear_probe, stratified

FRACTIONS = (0.01, 0.05, 0.1, 1.0)
SEEDS = (0, 1, 2, 3, 4)
WAYS = ("linear probe", "nearest neighbour", "fine-tuned")
BASELINE = "random"
COLORS = ("#777777", "#1f5fa8", "#e0953a", "#3c8d5a")

#: From a seed to an encoder, pretrained or not.
MakeEncoder = Callable[[int], nn.Module]
Report = Callable[[str], None]


class Labelled(NamedTuple):
    """Images and their labels."""

    images: Tensor  #: `[N, C, H, W]`
    labels: Tensor  #: integers `[N]`


@dataclass(frozen=True)
class Curve:
    """Accuracies on the test images.

    Attributes:
        fractions, seeds: the rows and columns of every table.
        counts: labelled images for each fraction.
        accuracy: by way of use and by encoder, `[fractions][seeds]`; one encoder is "random".
    """

    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    counts: tuple[int, ...]
    accuracy: dict[str, dict[str, list[list[float]]]]

    def row(self, way: str, encoder: str, fraction: float) -> Tensor:
        """One accuracy for each seed, float64."""
        return torch.tensor(self.accuracy[way][encoder][self.fractions.index(fraction)], dtype=torch.float64)

    def margin(self, way: str, encoder: str, fraction: float) -> Tensor:
        """For each seed how much better the encoder is than a random one with the same labels."""
        return self.row(way, encoder, fraction) - self.row(way, BASELINE, fraction)

    def table(self) -> str:
        """Means and standard deviations over the seeds, in percent, as Markdown."""
        heads = [f"{fraction:.0%} ({count} labels)" for fraction, count in zip(self.fractions, self.counts)]
        lines = [" | ".join(["| used as", "encoder", *heads]) + " |", "|---|---|" + "--:|" * len(heads)]
        for way, encoders in self.accuracy.items():
            for encoder in encoders:
                rows = [100 * self.row(way, encoder, fraction) for fraction in self.fractions]
                cells = [f"{float(row.mean()):.1f} ± {_std(row):.1f}" for row in rows]
                lines.append(" | ".join([f"| {way}", encoder, *cells]) + " |")
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(vars(self), indent=1) + "\n")


def curve(
    encoders: Mapping[str, MakeEncoder],
    train: Labelled,
    test: Labelled,
    *,
    fractions: Sequence[float] = FRACTIONS,
    seeds: Sequence[int] = SEEDS,
    ways: Sequence[str] = WAYS,
    steps: int = 150,
    report: Report = print,
) -> Curve:
    """Measure encoders with a part of the labels.

    Args:
        encoders: by name, of which one is "random"; each is made once for every seed.
        train, test: images and labels; a test image must not have been used to make an encoder.
        fractions: of the training images, by class; a larger one holds all labels of a smaller one.
        seeds: of the encoder, of the labels chosen, and of the training with them.
        ways: of `WAYS`: a logistic regression on frozen features, the nearest labelled image, or everything trained.
        steps: of fine-tuning.
        report: gets a line for every encoder and seed.
    """
    if BASELINE not in encoders:
        raise RecipeError(
            f"encoders: got {', '.join(encoders) or 'none'}, wanted: one named {BASELINE!r} to compare with"
        )
    if unknown := set(ways) - set(WAYS):
        raise RecipeError(f"ways: got {', '.join(sorted(unknown))}, wanted some of: {', '.join(WAYS)}")
    if not seeds or not fractions or not ways:
        raise RecipeError("seeds, fractions, ways: got an empty list, wanted at least one of each")
    chosen = [[stratified(train.labels, fraction, seed) for seed in seeds] for fraction in fractions]
    accuracy: dict[str, dict[str, list[list[float]]]] = {
        way: {name: [[] for _ in fractions] for name in encoders} for way in ways
    }
    for column, seed in enumerate(seeds):
        for name, make in encoders.items():
            encoder = make(seed)
            for row, parts in enumerate(chosen):
                few = Labelled(train.images[parts[column]], train.labels[parts[column]])
                for way in ways:
                    accuracy[way][name][row].append(_accuracy(way, encoder, few, test, seed, steps))
            got = ", ".join(f"{way} {accuracy[way][name][0][-1]:.1%}" for way in ways)
            report(f"seed {seed}, {name}: with {fractions[0]:.0%} of the labels {got}")
    counts = tuple(len(parts[0]) for parts in chosen)
    return Curve(tuple(fractions), tuple(seeds), counts, accuracy)


def _accuracy(way: str, encoder: nn.Module, few: Labelled, test: Labelled, seed: int, steps: int) -> float:
    if way == "fine-tuned":
        return finetune(encoder, few, test, seed=seed, steps=steps)
    codes = features(encoder, few.images), few.labels, features(encoder, test.images), test.labels
    return linear_probe(*codes) if way == "linear probe" else knn_accuracy(*codes, neighbors=1)


def finetune(encoder: nn.Module, few: Labelled, test: Labelled, *, seed: int, steps: int) -> float:
    """Train a copy of the encoder and a linear layer on the labelled images; the accuracy on the test images."""
    torch.manual_seed(seed)
    classifier = transfer(encoder, int(few.labels.max()) + 1)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(classifier.parameters(), 1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(len(few.labels), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(classifier(few.images[batch]), few.labels[batch]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float((classifier.eval()(test.images).argmax(1) == test.labels).double().mean())


def pretrain(config: PretextConfig, images: Tensor, *, seed: int, steps: int, batch_size: int = 128) -> PretextModel:
    """A pretext model trained on images by Adam, the learning rate going up to 0.001 and down to nothing."""
    torch.manual_seed(seed)
    model = PretextModel.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    optimizers = {phase: torch.optim.Adam(model.phase_parameters(phase)) for phase in model.phases}
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps) for optimizer in optimizers.values()
    ]
    for step in range(steps):
        batch = images[torch.randint(len(images), (batch_size,), generator=generator)]
        for phase, optimizer in optimizers.items():
            optimizer.zero_grad()
            model.backward(phase, batch, model.draw(phase, batch_size, generator), step=step)
            optimizer.step()
        for schedule in schedules:
            schedule.step()
    return model.eval()


# ---- the experiment


def labelled_digits(held_out: int = 360) -> tuple[Labelled, Labelled]:
    """The 1797 digits of scikit-learn, shuffled: those to train on, and 360 to test with."""
    bunch = need("sklearn.datasets").load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(bunch.images).float()[order, None] / 16
    labels = torch.from_numpy(bunch.target)[order]
    return Labelled(images[:-held_out], labels[:-held_out]), Labelled(images[-held_out:], labels[-held_out:])


def digits(
    folder: str | Path, *, seeds: Sequence[int] = SEEDS, pretrain_steps: int = 800, report: Report = print
) -> Curve:
    """The curve on the digits: a denoising autoencoder's encoder, a rotation-pretrained one, and a random one.

    All have three stages, from 8 x 8 pixels to 128 numbers. Writes `few_labels.json` and `few_labels.png` to `folder`.
    """
    train, test = labelled_digits()
    shape = {"image_size": 8, "channels": 1, "width": 32, "stages": 3}
    denoise = PretextConfig("predict_self", {"noise": 0.5, "latent_dim": None}, **shape)
    rotation = PretextConfig("rotation", **shape)  # type: ignore[arg-type]

    def random(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return PretextModel.from_config(rotation).encoder

    def pretrained(config: PretextConfig) -> MakeEncoder:
        return lambda seed: pretrain(config, train.images, seed=seed, steps=pretrain_steps).encoder

    encoders = {BASELINE: random, "denoising": pretrained(denoise), "rotation": pretrained(rotation)}
    measured = curve(encoders, train, test, seeds=seeds, report=report)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    measured.save(folder / "few_labels.json")
    save_figure(folder / "few_labels.png", measured)
    report(measured.table())
    return measured


def save_figure(path: Path, curve: Curve) -> None:
    """A panel for each way of use: mean accuracy over the share of labels, each seed as a point."""
    ways = list(curve.accuracy)
    figure = need("matplotlib.figure").Figure(figsize=(4.2 * len(ways), 3.9), dpi=100, layout="constrained")
    for axes, way in zip(figure.subplots(1, len(ways), sharey=True, squeeze=False)[0], ways):
        for (name, rows), color in zip(curve.accuracy[way].items(), COLORS):
            values = 100 * torch.tensor(rows, dtype=torch.float64)
            axes.plot(curve.counts, values.mean(1), color=color, linewidth=2, label=name)
            for seed in range(len(curve.seeds)):
                axes.plot(curve.counts, values[:, seed], ".", color=color, markersize=4, alpha=0.6)
        axes.set_xscale("log")
        axes.set_xticks(
            curve.counts, [f"{count}\n{fraction:.0%}" for count, fraction in zip(curve.counts, curve.fractions)]
        )
        axes.minorticks_off()
        axes.set_title(way, loc="left", fontsize=11)
        axes.set_xlabel("labelled images")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("test accuracy, %")
    figure.axes[-1].legend(frameon=False, loc="lower right", title="encoder")
    figure.savefig(path)


def _std(row: Tensor) -> float:
    return float(row.std()) if len(row) > 1 else 0.0
