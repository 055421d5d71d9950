"""`genmod interpolate`: the images on the way from one latent to another."""

from __future__ import annotations

import argparse

import torch

from genmod import latent
from genmod.recipes import RecipeError, command, pictures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `genmod interpolate`."""
    command.add_view_arguments(parser, "interpolation.png", images=False)
    add = parser.add_argument
    add("--data", metavar="digits|photos|shapes|PATH", help="between held-out images of these, instead of samples")
    add("--path", choices=["slerp", "lerp"], default="slerp", help="great circle or line (default: %(default)s)")
    add("--rows", type=command.positive, default=8, help="pairs of ends (default: %(default)s)")
    add("--columns", type=command.positive, default=10, help="images on the way, ends included (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    """Run the command; see `command.exit_code`."""
    return command.exit_code("interpolate", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Draw the picture."""
    if args.columns < 2:
        raise RecipeError(f"--columns: got {args.columns}, wanted at least 2")
    model = command.load_drawing(args.checkpoint)
    if args.data is None:
        ends = latent.from_prior(model, 2 * args.rows, torch.Generator().manual_seed(args.seed))
    else:
        command.load_encoding(args.checkpoint)
        ends = latent.encode(model, command.load_images(args.data, model).test[: 2 * args.rows])
    start, end = ends[: len(ends) // 2 * 2].detach().chunk(2)
    if not len(start):
        raise RecipeError(f"--data: {args.data} holds out one image, wanted at least 2")
    grid = latent.decode(model, latent.interpolate(start, end, args.columns, path=args.path))
    way = "great circle" if args.path == "slerp" else "straight line"
    command.save_picture(args.out, lambda path: pictures.save_grid(path, grid, f"From latent to latent on a {way}"))
