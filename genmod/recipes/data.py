"""Real images without a download: what ships inside scikit-learn and scikit-image, or what is already on the disk.

`load("digits")`, `load("photos")` and `load(PATH)` return an `ImageSet`; PATH is a folder of images, or MNIST or
CIFAR-10 files. Files are never trusted: no pickle can run code, no image can fill the memory, and a broken file is
named. Trouble that the user can put right is a `RecipeError`.
"""

from __future__ import annotations

import gzip
import pickle
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genmod.recipes import RecipeError, need

PATCH = 32  # pixels: the side of the photo patches, and of a user's images after resizing
LIMIT = 20_000  # images for training and, apart from these, for holding out: more than a few CPU minutes can use
NAMED = 10  # so many broken files are named, the others only counted

WANTED = (
    "wanted: 'digits', 'photos', 'all', a folder of images (PNG, JPEG, ...), MNIST files (train-images-idx3-ubyte, "
    "also .gz) or CIFAR-10 files (data_batch_1 or data_batch_1.bin)"
)


@dataclass(frozen=True)
class ImageSet:
    """images: float32 [N, C, H, W] in [0, 1]. The last `held_out` of them take no part in training."""

    name: str
    images: Tensor
    held_out: int

    @property
    def train(self) -> Tensor:
        return self.images[: -self.held_out]

    @property
    def test(self) -> Tensor:
        return self.images[-self.held_out :]


def load(data: str, report: Callable[[str], None] = print) -> ImageSet:
    """Read `digits`, `photos` or a path. `report` gets one line for each thing the user should know."""
    if data == "digits":
        return digits()
    if data == "photos":
        return photos()
    path = Path(data)
    try:
        if not path.exists():
            raise RecipeError(f"--data: no such file or folder: {data}; {WANTED}")
        # is_file() also keeps out pipes and devices, which would never end.
        files = sorted(file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    except OSError as error:
        raise RecipeError(f"--data: cannot read {data}: {error}") from error
    name = re.sub(r"[^\w.-]", "_", path.resolve().name) or "images"
    if idx := _idx_files(files):
        return _image_set(name, *_by_split(idx, read_idx, report))
    if cifar := _cifar_files(files):
        return _image_set(name, *_by_split(cifar, read_cifar, report))
    return _image_set(name, read_images(files, path, report))


# ---------------------------------------------------------------------------------------------- shipped with packages


def digits() -> ImageSet:
    """The 1797 handwritten digits of scikit-learn: [1797, 1, 8, 8], 17 grey levels."""
    bunch = need("sklearn.datasets").load_digits()
    return _image_set("digits", bunch.images[:, None].astype(np.float32) / 16)


def photos() -> ImageSet:
    """Patches [N, 3, 32, 32] of the colour photographs inside the scikit-image and scikit-learn wheels.

    Each photograph is scaled to 256 pixels on its short side. One square in ten is held out, and no training patch
    touches it: the training patches overlap, so a random split of patches would show the held-out pixels in training.
    """
    folder, more = (Path(need(name).__file__ or "").parent for name in ("skimage", "sklearn"))
    shots = [folder / "data" / name for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")]
    shots += [folder / "data" / "motorcycle_left.png"]
    shots += [more / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")]
    # The files are opened directly: skimage.data would try to download one that a later version leaves out.
    shots = [shot for shot in shots if shot.is_file()]
    if not shots:
        raise RecipeError(f"photos: scikit-image ships no photographs in {folder / 'data'}; {WANTED}")
    image_class, draw = need("PIL.Image"), torch.Generator().manual_seed(0)
    train, test = [], []
    for shot in shots:
        with image_class.open(shot) as image:
            scale = 256 / min(image.size)
            small = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
        pixels = torch.from_numpy(np.array(small))
        squares = torch.rand(pixels.shape[0] // PATCH, pixels.shape[1] // PATCH, generator=draw) < 0.1
        kept_apart = torch.zeros(pixels.shape[:2], dtype=torch.bool)
        whole = squares.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
        kept_apart[: whole.shape[0], : whole.shape[1]] = whole
        free = ~_patches(kept_apart[..., None], stride=8).flatten(1).any(1)
        train.append(_patches(pixels, stride=8)[free])
        test.append(_patches(pixels, stride=PATCH)[squares.flatten()])
    return _image_set("photos", torch.cat(train).numpy(), torch.cat(test).numpy())


def _patches(pixels: Tensor, stride: int) -> Tensor:
    """[H, W, C] -> [N, C, PATCH, PATCH], row by row."""
    return pixels.unfold(0, PATCH, stride).unfold(1, PATCH, stride).flatten(0, 1)


# -------------------------------------------------------------------------------------------------- a folder of images


def read_images(files: list[Path], root: Path, report: Callable[[str], None]) -> np.ndarray:
    """Every image that Pillow can read, cropped to its middle square and resized: uint8 [N, 3, PATCH, PATCH]."""
    image_class = need("PIL.Image")
    known = image_class.registered_extensions()
    if len(files) > LIMIT:
        report(f"{root}: {len(files)} files; taking {LIMIT} of them at random")
        keep = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[:LIMIT]
        files = [files[i] for i in keep.sort().values]
    images, broken, other = [], [], 0
    for file in files:
        try:
            images.append(read_image(file))
        except Exception as error:  # decoders raise many types: OSError, SyntaxError, ValueError, struct.error, ...
            if isinstance(error, image_class.UnidentifiedImageError) and file.suffix.lower() not in known:
                other += 1
            else:
                broken.append(f"skipped {file}: {error}")
    for line in broken[:NAMED]:
        report(line)
    if broken:
        report(f"{root}: skipped {len(broken)} broken or refused image files, read {len(images)}")
    if not images:
        counts = f"{len(files)} files: {len(broken)} broken or refused images, {other} not images"
        raise RecipeError(f"--data: no images in {root} ({counts}); {WANTED}")
    return np.stack(images)


def read_image(file: Path) -> np.ndarray:
    """One image file as uint8 [3, PATCH, PATCH]. Raises what Pillow raises; a decompression bomb is an error."""
    image_class, ops = need("PIL.Image"), need("PIL.ImageOps")
    image_class.init()
    # Pillow reads PostScript by starting another program on the file; no image set needs that.
    formats = [name for name in image_class.OPEN if name != "EPS"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", image_class.DecompressionBombWarning)
        with image_class.open(file, formats=formats) as image:
            image.draft(None, (2 * PATCH, 2 * PATCH))  # lets JPEG decode at a fraction of its size
            upright = ops.exif_transpose(image)
            return np.asarray(ops.fit(_rgb(upright), (PATCH, PATCH))).transpose(2, 0, 1)


def _rgb(image: Any) -> Any:
    """Any Pillow mode as 8-bit RGB, with transparent parts white."""
    image_class = need("PIL.Image")
    if image.mode.startswith(("I", "F")):  # 16 and 32 bits: Pillow's convert would cut everything off at 255
        pixels = np.nan_to_num(np.asarray(image, dtype=np.float32))
        low, high = float(pixels.min()), float(pixels.max())
        image = image_class.fromarray(((pixels - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = image_class.alpha_composite(image_class.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


# --------------------------------------------------------------------------------------------------------------- MNIST


def _idx_files(files: list[Path]) -> list[Path]:
    """The image files of one MNIST-like set; torchvision keeps each twice, with and without .gz."""
    found = {file.with_name(file.name.removesuffix(".gz")): file for file in reversed(files)}
    images = {plain: file for plain, file in found.items() if re.search(r"images[-.]idx3-ubyte$", plain.name)}
    # EMNIST has several overlapping sets in one folder: take one, or held-out images would be trained on.
    sets = {plain: (plain.parent, re.split("train|t10k|test", plain.name)[0]) for plain in images}
    first = min(sets.values(), default=None)
    return sorted(file for plain, file in images.items() if sets[plain] == first)


def read_idx(file: Path, limit: int = LIMIT) -> np.ndarray:
    """At most `limit` images of an idx3-ubyte file, gzip or plain: uint8 [N, 1, H, W]."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            magic, count, height, width = struct.unpack(">4I", stream.read(16))
            if magic != 0x803 or not 0 < height * width <= 128 * 128:
                raise ValueError(f"wanted magic 0x803 and up to 128 x 128 pixels, got {magic:#x}, {height} x {width}")
            count = min(count, limit)
            pixels = stream.read(count * height * width)
        return np.frombuffer(pixels, np.uint8).reshape(count, 1, height, width)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise RecipeError(f"--data: {file} is not a whole idx3-ubyte image file: {error}") from error


# --------------------------------------------------------------------------------------------------------------- CIFAR


def _cifar_files(files: list[Path]) -> list[Path]:
    """The CIFAR-10 batches: the binary version where both are there, as it needs no pickle."""
    for pattern in (r"(data_batch_\d+|test_batch)\.bin", r"data_batch_\d+|test_batch"):
        if found := [file for file in files if re.fullmatch(pattern, file.name)]:
            return found
    return []


def read_cifar(file: Path, limit: int = LIMIT) -> np.ndarray:
    """At most `limit` images of a CIFAR-10 batch, binary or Python version: uint8 [N, 3, 32, 32]."""
    try:
        if file.suffix == ".bin":
            pixels = np.fromfile(file, np.uint8).reshape(-1, 3073)[:, 1:]  # one label byte, then the pixels
        else:
            with file.open("rb") as stream:
                pixels = _array(_SafeUnpickler(stream, encoding="bytes").load())
        return pixels.reshape(-1, 3, 32, 32)[:limit]
    except Exception as error:  # a broken pickle can end in almost any of them
        raise RecipeError(f"--data: {file} is not a CIFAR-10 batch: {error}") from error


def _array(batch: dict[bytes | str, Any]) -> np.ndarray:
    found = batch[b"data"] if b"data" in batch else batch["data"]
    return found.pixels


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


# -------------------------------------------------------------------------------------------------------------- common


def _by_split(
    files: list[Path], read: Callable[[Path], np.ndarray], report: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Training images, and the set's own test images where its test file is there; at most LIMIT of each."""
    parts: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for file in files:
        parts["t10k" in file.name or "test" in file.name].append(read(file))
    joined = [np.concatenate(arrays)[:LIMIT] for arrays in parts.values() if arrays]
    if len(joined[0]) == LIMIT:
        report(f"{files[0].parent}: taking the first {LIMIT} images")
    return joined[0], (joined[1] if len(joined) == 2 else None)


def _image_set(name: str, train: np.ndarray, test: np.ndarray | None = None) -> ImageSet:
    """Join the two parts as floats, shuffled; without test images, a tenth of the others is held out."""
    parts = [_fit(_floats(part)) for part in (train, test) if part is not None and len(part)]
    count = sum(len(part) for part in parts)
    if count < 2:
        raise RecipeError(f"--data: {name} holds {count} image; wanted: at least 2, to hold one out")
    shuffled = [part[torch.randperm(len(part), generator=torch.Generator().manual_seed(0))] for part in parts]
    held_out = len(parts[1]) if len(parts) == 2 else max(count // 10, 1)
    return ImageSet(name, torch.cat(shuffled), held_out)


def _floats(images: np.ndarray) -> Tensor:
    # Contiguous, whatever order the pixels were read in: the strides decide which convolution runs.
    floats = torch.from_numpy(np.ascontiguousarray(images, np.float32))
    return floats / 255 if images.dtype == np.uint8 else floats


def _fit(images: Tensor) -> Tensor:
    """Keep square sizes that a small VAE can halve twice; anything else becomes PATCH x PATCH."""
    height, width = images.shape[-2:]
    if height == width and height % 4 == 0 and 8 <= height <= 64:
        return images
    return F.interpolate(images, (PATCH, PATCH), mode="bilinear", antialias=True).clamp(0, 1)
