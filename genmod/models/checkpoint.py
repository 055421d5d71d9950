"""Checkpoints of models: a folder with `model.safetensors` (the weights) and `config.json` (what they are weights of).

Nothing read from a checkpoint is ever run: no pickle, and no import by a name that stands in a file. A folder is
written so that a full disk or a killed process leaves the checkpoint that was there before whole: everything is on the
disk under another name before the first file is replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 1
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, or cannot be read as what was asked for."""


def write(folder: str | os.PathLike[str], header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write weights and header; see `read`. Raises `CheckpointError` where the files cannot be written."""
    folder = Path(folder)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    contents = {
        WEIGHTS: _safetensors().torch.save(weights, {"format": "pt"}),
        CONFIG: (json.dumps({"format": FORMAT, **header}, indent=2) + "\n").encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_files(folder, contents)
    except OSError as error:
        raise CheckpointError(f"cannot save to {folder}: {error}; what was saved there before is unchanged") from error


def replace_files(folder: Path, contents: dict[str, bytes]) -> None:
    """Write files of a folder, all or none: first each under a name of its own, then, with all on the disk, in place.

    Raises:
        OSError: the files are as they were.
    """
    with contextlib.ExitStack() as stack:
        written = {name: stack.enter_context(_temporary(folder, name, content)) for name, content in contents.items()}
        for name, path in written.items():
            os.replace(path, folder / name)


@contextlib.contextmanager
def _temporary(folder: Path, name: str, content: bytes) -> Iterator[str]:
    """A file with this content, on the disk and not in a cache; gone at the end, unless it was moved away."""
    descriptor, path = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(path, 0o666 & ~_umask())  # mkstemp's files are for their owner alone
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def read_header(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What `config.json` says: "model" (the class's name), "genmod" (the version that wrote it) and "config"."""
    folder = Path(folder)
    refuse_pickles(folder)
    path = folder / CONFIG
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        wanted = f"a folder with {CONFIG} and {WEIGHTS}, as save() writes it"
        raise CheckpointError(f"{folder} is no checkpoint ({error}); wanted: {wanted}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: not JSON ({error})") from error
    kinds: dict[str, type] = {"format": int, "model": str, "genmod": str, "config": dict}
    if not isinstance(header, dict) or any(not isinstance(header.get(name), kind) for name, kind in kinds.items()):
        raise CheckpointError(f"{path} is not the header of a checkpoint; wanted: an object with {', '.join(kinds)}")
    if header["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {header['format']}, written by genmod {header['genmod']}; this one reads format "
            f"{FORMAT}: load it with that version of genmod"
        )
    return header


def read_tensors(folder: str | os.PathLike[str], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, after a look at whether they have the names and shapes of `expected`, whose values do not matter."""
    path = Path(folder) / WEIGHTS
    refuse_pickles(path)
    library = _safetensors()
    try:
        with library.safe_open(str(path), framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _compare(path, found, {name: tuple(tensor.shape) for name, tensor in expected.items()})
            return {name: file.get_tensor(name) for name in found}
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is not there, though {CONFIG} is") from error
    except Exception as error:  # safetensors raises an Exception of its own for what it cannot read
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _compare(path: Path, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    for problem, names in (("lacks", wanted.keys() - found.keys()), ("also has", found.keys() - wanted.keys())):
        if names:
            shown = ", ".join(sorted(names)[:5])
            raise CheckpointError(
                f"{path} holds another model than {CONFIG} describes: it {problem} {len(names)} tensor(s): {shown}"
            )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise CheckpointError(
                f"{path} holds another model than {CONFIG} describes: {name} has shape {found[name]}, expected {shape}"
            )


def refuse_pickles(path: Path) -> None:
    """Raise for what looks like a pickle, by its name or its first bytes; it is never unpickled."""
    advice = "pickles can run any code when they are loaded, and are refused"
    wanted = f"wanted: a folder with {CONFIG} and {WEIGHTS}"
    if path.is_file() and (path.suffix.lower() in _PICKLES or _starts_as_pickle(path)):
        raise CheckpointError(f"{path} is a pickle: {advice}; {wanted}")
    if path.is_dir() and not (path / WEIGHTS).exists():
        pickles = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in _PICKLES)
        if pickles:
            raise CheckpointError(f"{path} holds a pickle, {pickles[0]}: {advice}; {wanted}")


def _starts_as_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(8)
    # torch.save wraps a pickle into a zip file; protocols from 2 on begin with 0x80 and their number. A safetensors
    # file begins with the length of its header in 8 bytes, of which the last are zero.
    return start[:4] == b"PK\x03\x04" or (
        len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 9 and start[6:] != b"\0\0"
    )


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ImportError(
            "saving and loading models needs the Python package 'safetensors'; install it with: "
            "pip install 'genmod-torch[train]'"
        ) from error
    return safetensors
