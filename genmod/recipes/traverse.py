"""`genmod traverse`: images with one latent of a trained model moved at a time."""

from __future__ import annotations

import argparse

from genmod.recipes import command, evaluate, pictures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `genmod traverse`."""
    command.add_view_arguments(parser, "traversal.png", images=True)


def main(args: argparse.Namespace) -> int:
    """Run the command; see `command.exit_code`."""
    return command.exit_code("traverse", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Draw the picture."""
    command.load_encoding(args.checkpoint)
    model = command.load_drawing(args.checkpoint)
    found = evaluate.traversal(model, command.load_images(args.data, model).test[:512])
    unit = evaluate.unit_of(model)
    command.save_picture(args.out, lambda path: pictures.save_traversal(path, *found, unit=unit))
