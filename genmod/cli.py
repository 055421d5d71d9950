"""The ``genmod`` command: one subcommand per entry of COMMANDS, each imported only when it is asked for.

A subcommand's module has ``add_arguments(parser)`` and ``main(args) -> int``, the exit code.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "doctor": ("genmod.doctor", "print versions, instruction sets, GPUs, and which backends work or why they do not"),
    "demo": ("genmod.recipes.demo", "train a small VAE on real images, once with stock PyTorch and once with genmod"),
    "train": ("genmod.recipes.train", "train an autoencoder, a VAE or a GAN"),
    "pretext": ("genmod.recipes.pretext", "train an encoder on labels made of the images themselves"),
    "probe": ("genmod.recipes.probe", "say what a trained encoder's features know about labels"),
    "sample": ("genmod.recipes.sample", "draw images from the prior of a trained model"),
    "reconstruct": ("genmod.recipes.reconstruct", "draw held-out images above what a trained model makes of them"),
    "traverse": ("genmod.recipes.traverse", "draw images with one latent of a trained model moved at a time"),
    "interpolate": ("genmod.recipes.interpolate", "draw the images on the way from one latent to another"),
    "map": ("genmod.recipes.map", "draw the latents of held-out images in the plane, coloured by label"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code; 130 after Ctrl-C."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="genmod", description="Fused building blocks of autoencoders, VAEs and GANs.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    subparsers = {name: commands.add_parser(name, help=text, description=text) for name, (_, text) in COMMANDS.items()}
    chosen = argv[0] if argv and argv[0] in COMMANDS else None
    if chosen is None:
        parser.parse_args(argv)  # prints the help, or the error, and exits
        raise AssertionError("an unknown command was parsed")
    try:
        command = importlib.import_module(COMMANDS[chosen][0])
        command.add_arguments(subparsers[chosen])
        return command.main(parser.parse_args(argv))
    except KeyboardInterrupt:
        return 130
