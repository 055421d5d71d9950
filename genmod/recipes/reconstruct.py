"""`genmod reconstruct`: held-out images above what a trained model makes of them."""

from __future__ import annotations

import argparse

from genmod.recipes import command, pictures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `genmod reconstruct`."""
    command.add_view_arguments(parser, "reconstructions.png", images=True)
    parser.add_argument("--number", type=command.positive, default=16, help="of images (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    """Run the command; see `command.exit_code`."""
    return command.exit_code("reconstruct", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Draw the picture."""
    command.load_encoding(args.checkpoint)
    model = command.load_drawing(args.checkpoint)
    images = command.load_images(args.data, model).test[: args.number]
    command.save_picture(args.out, lambda path: pictures.save_reconstructions(path, images, model.reconstruct(images)))
