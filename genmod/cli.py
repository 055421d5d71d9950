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
    "compare": ("genmod.recipes.compare", "a model before and after genmod.accelerate: errors, times, memory"),
    "demo": ("genmod.recipes.demo", "train a small VAE on real images, once with stock PyTorch and once with genmod"),
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
