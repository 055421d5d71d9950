"""`genmod map`: the latents of held-out images as points in the plane, coloured by label."""

from __future__ import annotations

import argparse

from genmod import latent
from genmod.recipes import RecipeError, command, pictures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `genmod map`."""
    command.add_view_arguments(parser, "map.png", images=True)
    help = "pca; tsne needs scikit-learn, umap needs umap-learn (default: %(default)s)"
    parser.add_argument("--method", choices=["pca", "tsne", "umap"], default="pca", help=help)
    parser.add_argument("--number", type=command.positive, default=2000, help="images at most (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    """Run the command; see `command.exit_code`."""
    return command.exit_code("map", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Draw the picture."""
    if args.method not in latent.methods():
        raise RecipeError(f"--method: {args.method} is not installed; there are: {', '.join(latent.methods())}")
    model = command.load_encoding(args.checkpoint)
    images = command.load_images(args.data, model)
    shown = images.test[: args.number]
    if len(shown) < 3:
        raise RecipeError(f"--data: {args.data} holds out {len(shown)} images, wanted at least 3")
    points = latent.project(latent.encode(model, shown), method=args.method, seed=args.seed)
    labels = None if images.test_labels is None else images.test_labels[: args.number]
    title = f"Latents of {len(shown)} held-out images, {args.method.upper().replace('TSNE', 't-SNE')}"
    command.save_picture(args.out, lambda path: pictures.save_map(path, points, labels, images.classes, title))
