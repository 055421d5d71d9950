"""Checkpoints of a training run: `OUT/checkpoints/step-00000500/`, written whole or not at all.

Each holds the model as `Model.save` writes it (model.safetensors, config.json), the averaged model in `ema/` where
there is one, training.safetensors (the optimisers' tensors, the curves, the random state) and training.json (step and
settings). Nothing is a pickle: reading a checkpoint runs no code of whoever wrote it.

A checkpoint is written into a folder beside its place, flushed to the disk, and put in place by one rename; only then
the one before it is deleted. So whenever the process dies, the newest folder is whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from genmod.models import checkpoint as model_files
from genmod.models.base import CheckpointError
from genmod.recipes import RecipeError, need

TENSORS, FACTS = "training.safetensors", "training.json"


class SaveError(RecipeError):
    """A checkpoint could not be written, for one because the disk is full. Those before it are whole."""


class Checkpoints:
    """The checkpoints of one run, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        names = [entry.name for entry in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d{8,}", name))

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        steps = self.steps()
        return self._place(steps[-1]) if steps else None

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a folder, put it in place as the checkpoint of `step`, and delete the older ones.

        Raises:
            SaveError: it could not be written.
        """
        place, partial = self._place(step), self.folder / f"partial-{os.getpid()}"
        try:
            self._clear()
            partial.mkdir(parents=True)
            write(partial)
            _flush(partial)
            if place.exists():  # the same step again: the run ended, or was interrupted, where it had just saved
                shutil.rmtree(partial)
            else:
                partial.rename(place)
            _flush_folder(self.folder)
        except (OSError, CheckpointError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            kept = self.latest()
            left = f"the checkpoint before it is whole: {kept}" if kept else "there is no checkpoint before it"
            raise SaveError(f"cannot save step {step} in {self.folder}: {error}; {left}") from error
        for older in self.steps():
            if older < step:
                shutil.rmtree(self._place(older), ignore_errors=True)
        return place

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _clear(self) -> None:
        """Remove what a process that was killed has left half written."""
        for partial in self.folder.glob("partial-*"):
            shutil.rmtree(partial, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _flush_folder(path)
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there, and need not be
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_training(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """training.safetensors and training.json in `folder`."""
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    (folder / TENSORS).write_bytes(need("safetensors.torch").save(own))
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")


def read_training(folder: Path, facts: dict[str, Any]) -> tuple[dict[str, Tensor], int]:
    """The tensors of a checkpoint and its step, if it is one of a run with these facts.

    Raises:
        CheckpointError: a file is missing or damaged, a pickle (which is not opened), or of a run with other facts.
    """
    try:
        found = json.loads((folder / FACTS).read_text())
        step = int(found["step"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / FACTS} is damaged: {error!r}") from error
    for name, value in json.loads(json.dumps(facts)).items():
        if found.get(name) != value:
            raise CheckpointError(
                f"{folder} belongs to a run with {name} = {found.get(name)}, this one has {value}: give the same "
                "options as then, or another folder"
            )
    path = folder / TENSORS
    model_files.refuse_pickles(path)
    library = need("safetensors.torch")
    try:
        return library.load_file(path), step
    except (OSError, need("safetensors").SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def load_weights(model: Any, folder: Path) -> None:
    """Read into `model` the weights that `Model.save` wrote, if they are of its class and configuration.

    Raises:
        CheckpointError: they are of another model, damaged, or a pickle.
    """
    header = model_files.read_header(folder)
    mine = {"model": type(model).__name__, "config": json.loads(json.dumps(dataclasses.asdict(model.config)))}
    for name, value in mine.items():
        if header[name] != value:
            raise CheckpointError(f"{folder} holds the {name} {header[name]}, expected {value}")
    model.load_state_dict(model_files.read_tensors(folder, model.state_dict()))


def model_folder(path: Path) -> Path:
    """The folder to give to `genmod.models.load`: a run's newest checkpoint, or `path` itself where it holds a model.

    Of a run with averaged weights, the folder of these.
    """
    model = Checkpoints(path / "checkpoints").latest() or path
    return model / "ema" if (model / "ema").is_dir() else model
