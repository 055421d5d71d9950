"""What the commands share: messages, exit codes, options."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from genmod import models
from genmod.models.base import CheckpointError, Model
from genmod.recipes import RecipeError, need
from genmod.recipes.checkpoint import model_folder
from genmod.recipes.data import ImageSet, load


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
    importlib.import_module("genmod.pretext")  # its models can be loaded once it is imported
    return models.load(model_folder(folder)).eval()


def add_view_arguments(parser: argparse.ArgumentParser, picture: str, *, images: bool) -> None:
    """What the commands that draw a trained model have in common; `images` for those that show it some."""
    parser.add_argument("checkpoint", type=Path, help="folder of a training run, of a checkpoint or of a saved model")
    parser.add_argument("--out", type=Path, default=Path(picture), help="PNG file to write (default: %(default)s)")
    parser.add_argument("--seed", type=natural, default=0, help="default: %(default)s")
    if images:
        parser.add_argument(
            "--data", default="digits", metavar="digits|photos|shapes|PATH", help="default: %(default)s"
        )


def load_drawing(folder: Path) -> Model:
    """As `load_model`, of one that draws images."""
    model = load_model(folder)
    if type(model).decode is Model.decode:
        raise RecipeError(f"{folder} holds a {type(model).__name__}, which draws no images")
    return model


def load_encoding(folder: Path) -> Model:
    """As `load_model`, of one that has an encoder."""
    model = load_model(folder)
    if type(model).latents is Model.latents:
        raise RecipeError(f"{folder} holds a {type(model).__name__}, which has no encoder")
    return model


def load_images(data: str, model: Model) -> ImageSet:
    """The images for a model, resized to what it takes."""
    channels, size, _ = model.image_shape
    images = load(data, report=sayer(console()), size=size)
    if images.images.shape[1] != channels:
        raise RecipeError(f"--data: {data} has images of {images.images.shape[1]} channels, the model takes {channels}")
    return images


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


@contextlib.contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Around what writes into a folder that there is: a full disk is one message, which says what is missing there."""
    try:
        yield
    except OSError as error:
        raise RecipeError(f"--out: cannot write {what} to {folder}: {error}") from error


def save_picture(path: Path, draw: Callable[[Path], object]) -> None:
    """Let `draw` write a picture to `path`."""
    if path.suffix.lower() != ".png":
        raise RecipeError(f"--out: got {path}, wanted a file name that ends with .png")
    make_folder(path.parent)
    try:
        draw(path)
    except OSError as error:
        raise RecipeError(f"--out: cannot write {path}: {error}") from error
