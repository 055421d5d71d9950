"""MNIST and CIFAR-10 files: many images in one. They are not trusted: no pickle in them can run code."""

from __future__ import annotations

import gzip
import pickle
import re
import struct
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from genmod.recipes import RecipeError

Part = tuple[np.ndarray, np.ndarray | None]  # images, uint8 [N, C, H, W], and labels [N] where they are known

# --------------------------------------------------------------------------------------------------------------- MNIST


def idx_files(files: list[Path]) -> list[Path]:
    """The image files of one MNIST-like set; torchvision keeps each twice, with and without .gz."""
    found = {file.with_name(file.name.removesuffix(".gz")): file for file in reversed(files)}
    images = {plain: file for plain, file in found.items() if re.search(r"images[-.]idx3-ubyte$", plain.name)}
    # EMNIST has several overlapping sets in one folder: take one, or held-out images would be trained on.
    sets = {plain: (plain.parent, re.split("train|t10k|test", plain.name)[0]) for plain in images}
    first = min(sets.values(), default=None)
    return sorted(file for plain, file in images.items() if sets[plain] == first)


def read_idx(file: Path, limit: int) -> Part:
    """At most `limit` images of an idx3-ubyte file, gzip or plain, [N, 1, H, W], and the labels of the file beside it.

    Without a label file, or with one that is broken, there are no labels.
    """
    try:
        with _open(file) as stream:
            magic, count, height, width = struct.unpack(">4I", stream.read(16))
            if magic != 0x803 or not 0 < height * width <= 128 * 128:
                raise ValueError(f"wanted magic 0x803 and up to 128 x 128 pixels, got {magic:#x}, {height} x {width}")
            count = min(count, limit)
            pixels = stream.read(count * height * width)
        return np.frombuffer(pixels, np.uint8).reshape(count, 1, height, width), _idx_labels(file, count)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise RecipeError(f"--data: {file} is not a whole idx3-ubyte image file: {error}") from error


def _idx_labels(images: Path, count: int) -> np.ndarray | None:
    plain = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    for name in (plain, f"{plain}.gz"):
        try:
            with _open(images.with_name(name)) as stream:
                magic, there = struct.unpack(">2I", stream.read(8))
                labels = np.frombuffer(stream.read(min(there, count)), np.uint8)
        except (OSError, EOFError, struct.error):
            continue
        if magic == 0x801 and len(labels) == count:
            return labels.astype(np.int64)
    return None


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


# --------------------------------------------------------------------------------------------------------------- CIFAR


def cifar_files(files: list[Path]) -> list[Path]:
    """The CIFAR-10 batches: the binary version where both are there, as it needs no pickle."""
    for pattern in (r"(data_batch_\d+|test_batch)\.bin", r"data_batch_\d+|test_batch"):
        if found := [file for file in files if re.fullmatch(pattern, file.name)]:
            return found
    return []


def read_cifar(file: Path, limit: int) -> Part:
    """At most `limit` images of a CIFAR-10 batch, binary or Python version, [N, 3, 32, 32], with their labels."""
    try:
        labels: np.ndarray | None
        if file.suffix == ".bin":
            rows = np.fromfile(file, np.uint8).reshape(-1, 3073)  # one label byte, then the pixels
            pixels, labels = rows[:, 1:], np.asarray(rows[:, 0], np.int64)
        else:
            with file.open("rb") as stream:
                batch = _SafeUnpickler(stream, encoding="bytes").load()
            pixels, labels = _named(batch, "data").pixels, _whole_numbers(batch)
        images = pixels.reshape(-1, 3, 32, 32)[:limit]
    except Exception as error:  # a broken pickle can end in almost any of them
        raise RecipeError(f"--data: {file} is not a CIFAR-10 batch: {error}") from error
    return images, labels[:limit] if labels is not None and len(labels) >= len(images) else None


def _named(batch: dict[bytes | str, Any], name: str) -> Any:
    return batch[name.encode()] if name.encode() in batch else batch[name]


def _whole_numbers(batch: dict[bytes | str, Any]) -> np.ndarray | None:
    try:
        labels = _named(batch, "labels")
    except KeyError:
        return None
    fit = isinstance(labels, list) and all(isinstance(label, int) and 0 <= label < 1000 for label in labels)
    return np.array(labels, np.int64) if fit else None


class _Bytes:
    """Stands in for numpy.ndarray while unpickling: takes uint8 arrays and nothing else.

    Giving a pickle numpy's real classes would let it set their raw state, dtype flags included.
    """

    pixels: np.ndarray

    def __setstate__(self, state: tuple[int, tuple[int, ...], Any, bool, bytes]) -> None:
        _, shape, _, fortran, raw = state
        self.pixels = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Uint8:
    """Stands in for numpy.dtype."""

    def __init__(self, name: str | bytes, *_: Any) -> None:
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"wanted an array of bytes, got numpy type {name!r}")

    def __setstate__(self, _: tuple[Any, ...]) -> None:
        """A byte has no byte order, fields or flags to set."""


def _new_array(*_: Any) -> _Bytes:
    return _Bytes()


def _array_of(raw: bytes, _: Any, shape: tuple[int, ...], order: str) -> _Bytes:
    made = _Bytes()
    made.__setstate__((1, shape, None, order == "F", raw))
    return made


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into protocol 2: as text, encoded again at load."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"wanted the encoding latin1, got {encoding!r}")
    return text.encode("latin1")


class _SafeUnpickler(pickle.Unpickler):
    """Reads lists, dicts, strings, bytes, numbers and byte arrays. Nothing that a pickle names is imported."""

    ADMITTED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): _Bytes,
        ("numpy", "dtype"): _Uint8,
        ("numpy.core.multiarray", "_reconstruct"): _new_array,
        ("numpy._core.multiarray", "_reconstruct"): _new_array,
        ("numpy.core.numeric", "_frombuffer"): _array_of,
        ("numpy._core.numeric", "_frombuffer"): _array_of,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"refused: it asks for {module}.{name}, and only arrays of bytes may be there")
        return self.ADMITTED[module, name]
