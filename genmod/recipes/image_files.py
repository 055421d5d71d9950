"""Images in a folder, one per file, in whatever format Pillow reads. A broken file is named, skipped and counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genmod.recipes import RecipeError, need

NAMED = 10  # so many broken files are named, the others only counted


def read_images(
    files: list[Path], root: Path, size: int, limit: int, report: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Every image that Pillow can read, cropped to its middle square and resized: uint8 [N, 3, size, size].

    Where every image lies in a folder below `root`, of which there are at least two, these are the classes: labels
    [N] and their names. Otherwise there are none.
    """
    image_class = need("PIL.Image")
    known = image_class.registered_extensions()
    if len(files) > limit:
        report(f"{root}: {len(files)} files; taking {limit} of them at random")
        keep = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[:limit]
        files = [files[i] for i in keep.sort().values]
    images, read, broken, other = [], [], [], 0
    for file in files:
        try:
            images.append(read_image(file, size))
            read.append(file)
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
        raise RecipeError(f"--data: no images in {root} ({counts})")
    return np.stack(images), *_classes(read, root)


def _classes(files: list[Path], root: Path) -> tuple[np.ndarray | None, tuple[str, ...]]:
    if not root.is_dir():
        return None, ()
    paths = [file.relative_to(root).parts for file in files]
    names = sorted({parts[0] for parts in paths})
    if len(names) < 2 or any(len(parts) < 2 for parts in paths):
        return None, ()
    return np.array([names.index(parts[0]) for parts in paths]), tuple(names)


def read_image(file: Path, size: int) -> np.ndarray:
    """One image file as uint8 [3, size, size]. Raises what Pillow raises; a decompression bomb is an error."""
    image_class, ops = need("PIL.Image"), need("PIL.ImageOps")
    image_class.init()
    # Pillow reads PostScript by starting another program on the file; no image set needs that.
    formats = [name for name in image_class.OPEN if name != "EPS"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", image_class.DecompressionBombWarning)
        with image_class.open(file, formats=formats) as image:
            image.draft(None, (2 * size, 2 * size))  # lets JPEG decode at a fraction of its size
            upright = ops.exif_transpose(image)
            return np.asarray(ops.fit(_rgb(upright), (size, size))).transpose(2, 0, 1)


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
