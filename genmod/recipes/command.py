"""What the commands share: messages, exit codes, options."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genmod.models.base import CheckpointError, Model
from genmod.recipes import RecipeError, need
from genmod.recipes.checkpoint import model_folder


def exit_code(command: str, run: Callable[[], object]) -> int:
    """Run a command: 0, or after one message on stderr 2 where the user can put something right, 3 after divergence."""
    try:
        run()
    except CheckpointError as error:
        print(f"genmod {command}: {error}", file=sys.stderr)
        return RecipeError.exit_code
    except RecipeError as error:
        print(f"genmod {command}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def is_main_process() -> bool:
    """Whether this is the only process, or the first of those that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def console() -> Any:
    """Where the main process writes; the others are silent."""
    return need("rich.console").Console(quiet=not is_main_process())


def sayer(to: Any) -> Callable[[str], None]:
    """Writes a line to a console as it is: file names may hold what rich takes for markup or wraps in the middle."""
    return lambda line: to.print(line, markup=False, highlight=False, soft_wrap=True)


def load_model(folder: Path) -> Model:
    """The model of a run, of a checkpoint, or of a folder that `Model.save` wrote, in evaluation mode."""
    import genmod.models
    import genmod.pretext  # noqa: F401  (its models can be loaded once it is imported)

    return genmod.models.load(model_folder(folder)).eval()


def positive(text: str) -> int:
    """A whole number >= 1, for argparse."""
    return at_least(text, 1)


def natural(text: str) -> int:
    """A whole number >= 0, for argparse."""
    return at_least(text, 0)


def at_least(text: str, least: int) -> int:
    """A whole number >= least; argparse prints the message."""
    if not text.removeprefix("-").isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"wanted a whole number >= {least}, got {text!r}")
    return int(text)


def make_folder(path: Path) -> Path:
    """The folder for a command's results."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"--out: cannot write to {path}: {error}") from error
    return path


def save_picture(path: Path, draw: Callable[[Path], object]) -> None:
    """Let `draw` write a picture to `path`."""
    if path.suffix.lower() != ".png":
        raise RecipeError(f"--out: got {path}, wanted a file name that ends with .png")
    make_folder(path.parent)
    try:
        draw(path)
    except OSError as error:
        raise RecipeError(f"--out: cannot write {path}: {error}") from error
