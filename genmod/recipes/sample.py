"""`genmod sample`: images from the prior of a trained model."""

from __future__ import annotations

import argparse

import torch

from genmod.recipes import command, pictures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `genmod sample`."""
    command.add_view_arguments(parser, "samples.png", images=False)
    parser.add_argument("--number", type=command.positive, default=64, help="of images (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    """Run the command; see `command.exit_code`."""
    return command.exit_code("sample", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Draw the picture."""
    model = command.load_drawing(args.checkpoint)
    images = model.sample(args.number, torch.Generator().manual_seed(args.seed))
    command.save_picture(args.out, lambda path: pictures.save_samples(path, images))
