"""Real images without a download: what ships inside scikit-learn and scikit-image, or what is already on the disk.

`load("digits")`, `load("photos")`, `load("shapes")` and `load(PATH)` return an `ImageSet`; PATH is a folder of images,
or MNIST or CIFAR-10 files. Files are never trusted: no pickle can run code, no image can fill the memory, and a broken
file is named. Trouble that the user can put right is a `RecipeError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genmod.recipes import RecipeError, need
from genmod.recipes.image_files import read_images
from genmod.recipes.packed_files import Part, cifar_files, idx_files, read_cifar, read_idx

PATCH = 32  # pixels: the side of the photo patches, and of a user's images after resizing
LIMIT = 20_000  # images for training and, apart from these, for holding out: more than a few CPU minutes can use

WANTED = (
    "wanted: 'digits', 'photos', 'shapes', a folder of images (PNG, JPEG, ...), MNIST files (train-images-idx3-ubyte, "
    "also .gz) or CIFAR-10 files (data_batch_1 or data_batch_1.bin)"
)


@dataclass(frozen=True)
class ImageSet:
    """images: float32 [N, C, H, W] in [0, 1]. The last `held_out` of them take no part in training.

    labels: int64 [N], numbers of `classes`, where the data has them.
    """

    name: str
    images: Tensor
    held_out: int
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    @property
    def train(self) -> Tensor:
        return self.images[: -self.held_out]

    @property
    def test(self) -> Tensor:
        return self.images[-self.held_out :]

    @property
    def train_labels(self) -> Tensor | None:
        return None if self.labels is None else self.labels[: -self.held_out]

    @property
    def test_labels(self) -> Tensor | None:
        return None if self.labels is None else self.labels[-self.held_out :]


def load(data: str, report: Callable[[str], None] = print, size: int | None = None) -> ImageSet:
    """Read `digits`, `photos`, `shapes` or a path. `report` gets one line for each thing the user should know.

    size: height and width to resize all images to; without it they stay as they are where models can take that, and
    are otherwise resized to `PATCH`.
    """
    if size is not None and not 4 <= size <= 512:
        raise RecipeError(f"--size: got {size}, wanted 4 to 512 pixels")
    images = SHIPPED[data]() if data in SHIPPED else _from_path(Path(data), report, size or PATCH)
    return images if size in (None, images.images.shape[-1]) else replace(images, images=_resize(images.images, size))


def _from_path(path: Path, report: Callable[[str], None], size: int) -> ImageSet:
    try:
        if not path.exists():
            raise RecipeError(f"--data: no such file or folder: {path}; {WANTED}")
        # is_file() also keeps out pipes and devices, which would never end.
        files = sorted(file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    except OSError as error:
        raise RecipeError(f"--data: cannot read {path}: {error}") from error
    name = re.sub(r"[^\w.-]", "_", path.resolve().name) or "images"
    if idx := idx_files(files):
        return _image_set(name, *_by_split(idx, read_idx, report))
    if cifar := cifar_files(files):
        return _image_set(name, *_by_split(cifar, read_cifar, report))
    try:
        images, labels, classes = read_images(files, path, size, LIMIT, report)
    except RecipeError as error:
        raise RecipeError(f"{error}; {WANTED}") from error
    return _image_set(name, (images, labels), classes=classes)


# ---------------------------------------------------------------------------------------------- shipped with packages


def digits() -> ImageSet:
    """The 1797 handwritten digits of scikit-learn: [1797, 1, 8, 8], 17 grey levels."""
    bunch = need("sklearn.datasets").load_digits()
    return _image_set("digits", (bunch.images[:, None].astype(np.float32) / 16, bunch.target))


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
    return _image_set("photos", (torch.cat(train).numpy(), None), (torch.cat(test).numpy(), None))


def _patches(pixels: Tensor, stride: int) -> Tensor:
    """[H, W, C] -> [N, C, PATCH, PATCH], row by row."""
    return pixels.unfold(0, PATCH, stride).unfold(1, PATCH, stride).flatten(0, 1)


def shapes() -> ImageSet:
    """White sprites made exactly from five factors: see `genmod.recipes.shapes`."""
    from genmod.recipes.shapes import load as made  # which builds an ImageSet of its own

    return made()


SHIPPED = {"digits": digits, "photos": photos, "shapes": shapes}


# -------------------------------------------------------------------------------------------------------------- common


def _by_split(
    files: list[Path], read: Callable[[Path, int], Part], report: Callable[[str], None]
) -> tuple[Part, Part | None]:
    """Training images, and the set's own test images where its test file is there; at most LIMIT of each."""
    parts: dict[bool, list[Part]] = {False: [], True: []}
    for file in files:
        parts["t10k" in file.name or "test" in file.name].append(read(file, LIMIT))
    joined = [_join(each) for each in parts.values() if each]
    if len(joined[0][0]) == LIMIT:
        report(f"{files[0].parent}: taking the first {LIMIT} images")
    return joined[0], (joined[1] if len(joined) == 2 else None)


def _join(parts: list[Part]) -> Part:
    images, labels = zip(*parts, strict=True)
    known = [each for each in labels if each is not None]
    return np.concatenate(images)[:LIMIT], np.concatenate(known)[:LIMIT] if len(known) == len(parts) else None


def _image_set(name: str, train: Part, test: Part | None = None, classes: tuple[str, ...] = ()) -> ImageSet:
    """Join the two parts as floats, shuffled; without test images, a tenth of the others is held out."""
    parts = [part for part in (train, test) if part is not None and len(part[0])]
    count = sum(len(images) for images, _ in parts)
    if count < 2:
        raise RecipeError(f"--data: {name} holds {count} image; wanted: at least 2, to hold one out")
    orders = [torch.randperm(len(images), generator=torch.Generator().manual_seed(0)) for images, _ in parts]
    images = torch.cat([_fit(_floats(part))[order] for (part, _), order in zip(parts, orders, strict=True)])
    known = [torch.from_numpy(part)[order] for (_, part), order in zip(parts, orders, strict=True) if part is not None]
    labels = torch.cat(known).long() if len(known) == len(parts) else None
    if labels is not None and not classes:
        classes = tuple(str(number) for number in range(int(labels.max()) + 1))
    held_out = len(parts[1][0]) if len(parts) == 2 else max(count // 10, 1)
    return ImageSet(name, images, held_out, labels, classes)


def _floats(images: np.ndarray) -> Tensor:
    # Contiguous, whatever order the pixels were read in: the strides decide which convolution runs.
    floats = torch.from_numpy(np.ascontiguousarray(images, np.float32))
    return floats / 255 if images.dtype == np.uint8 else floats


def _fit(images: Tensor) -> Tensor:
    """Keep square sizes that a small VAE can halve twice; anything else becomes PATCH x PATCH."""
    height, width = images.shape[-2:]
    return images if height == width and height % 4 == 0 and 8 <= height <= 64 else _resize(images, PATCH)


def _resize(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
