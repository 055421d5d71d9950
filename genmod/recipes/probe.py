"""`genmod probe`: what a trained encoder's features say about the labels, beside those of one that was never trained.

The features are frozen. Their nearest neighbours and a linear classifier on them are judged on held-out images, the
latter with only some of the training labels too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genmod import latent
from genmod.models import Model
from genmod.pretext import PretextModel
from genmod.recipes import RecipeError, command, need
from genmod.recipes.data import ImageSet
from genmod.recipes.representation import features, knn_accuracy, linear_probe, stratified

FRACTIONS = (0.01, 0.05, 0.1, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `genmod probe`."""
    parser.add_argument("checkpoint", type=Path, help="folder of a training run, of a checkpoint or of a saved model")
    parser.add_argument("--data", default="digits", metavar="digits|PATH", help="labelled (default: %(default)s)")
    parser.add_argument("--seed", type=command.natural, default=0, help="of which labels are kept, and of the weights")
    parser.add_argument("--out", type=Path, help="JSON file for the results")


def main(args: argparse.Namespace) -> int:
    """Run the command; see `command.exit_code`."""
    return command.exit_code("probe", lambda: run(args))


def run(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Accuracies by row ("5 % of labels, linear") of the trained encoder and of a random one."""
    console = command.console()
    model = command.load_encoding(args.checkpoint)
    images = command.load_images(args.data, model)
    if images.labels is None:
        raise RecipeError(
            f"--data: {args.data} has no labels, wanted digits, MNIST, CIFAR-10 or a folder for each class"
        )
    torch.manual_seed(args.seed)
    found = {"trained": accuracies(model, images, args.seed), "random": accuracies(fresh(model), images, args.seed)}
    table = need("rich.table").Table(title=f"accuracy on {images.held_out} held-out images", title_justify="left")
    for heading in ("", *found):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in found["trained"]:
        table.add_row(row, *(f"{column[row]:.1%}" for column in found.values()))
    console.print(table)
    if args.out:
        command.make_folder(args.out.parent)
        with command.writing(args.out.name, args.out.parent):
            args.out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def fresh(model: Model) -> Model:
    """A model of the same configuration with new weights from torch's global generator."""
    kind: Any = type(model)
    made: Model = kind.from_config(model.config) if isinstance(model, PretextModel) else kind(model.config)
    return made.eval()


def encoded(model: Model, images: Tensor) -> Tensor:
    """The features of images `[N, D]`: of the encoder itself, before it is squeezed into latents."""
    encoder = getattr(model, "encoder", None)
    if isinstance(model, PretextModel) or not isinstance(encoder, torch.nn.Module):
        return latent.encode(model, images)
    return features(encoder, images)


def accuracies(model: Model, images: ImageSet, seed: int) -> dict[str, float]:
    """Of nearest neighbours and of a linear classifier, by the name of the row."""
    assert images.train_labels is not None and images.test_labels is not None
    train, test = encoded(model, images.train), encoded(model, images.test)
    labels, test_labels = images.train_labels, images.test_labels
    found = {"nearest neighbours": knn_accuracy(train, labels, test, test_labels)}
    for fraction in FRACTIONS:
        kept = stratified(labels, fraction, seed)
        row = f"linear, {fraction:.0%} of the labels"
        found[row] = linear_probe(train[kept], labels[kept], test, test_labels)
    return found
