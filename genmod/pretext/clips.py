"""Moving clips made from real images: exact, seeded, and with known motion.

Every frame is made of the images' own pixels, at whole offsets, so nothing is interpolated, and what is true of a clip
(which frame came first, where things move) is true by construction.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from genmod.pretext.task import check_samples, whole

Direction = Literal["any", "right"]
DIRECTIONS = ("any", "right")


class Clips(NamedTuple):
    """Clips and how they were made."""

    frames: Tensor  #: `[B, T, C, h, w]`
    positions: Tensor  #: `[B, T, 2]`, whole numbers: top and left of the window, or of the image on its canvas


def pan(
    images: Tensor,
    frames: int,
    size: int,
    *,
    speed: int = 1,
    direction: Direction = "any",
    generator: torch.Generator | None = None,
) -> Clips:
    """A window that moves across each image by a constant step: what a panning camera sees.

    Frame t of clip b is `images[b, :, y : y + size, x : x + size]` with `(y, x) = positions[b, t]`.

    Args:
        images: `[B, C, H, W]`.
        frames: T of each clip.
        size: height and width of the window.
        speed: the longest step in pixels; the window moves by 1 to `speed` pixels in each of the two directions, or by
            none in one of them.
        direction: "any", or "right": always to the right, so that the order of two frames can be told from them.
        generator: where motions are drawn from.

    Raises:
        TypeError, ValueError: an image that the window would leave.
    """
    _check(images, frames, speed, direction)
    whole("size", size)
    span = (frames - 1) * speed
    height, width = images.shape[-2:]
    if min(height, width) < size + span:
        raise ValueError(
            f"images: got {height} x {width} pixels, expected at least size + (frames - 1) * speed = {size + span} in "
            "both directions"
        )
    velocity = _velocities(len(images), speed, direction, generator)
    room = torch.tensor([height - size, width - size], device="cpu") - (frames - 1) * velocity.abs()
    positions = _paths(velocity, room, frames, generator).to(images.device)
    inside = torch.arange(size, device=images.device)
    rows = positions[..., 0, None] + inside
    columns = positions[..., 1, None] + inside
    sample = torch.arange(len(images), device=images.device)
    taken = images.movedim(1, -1)[
        sample[:, None, None, None], rows[..., :, None], columns[..., None, :]
    ]  # [B, T, size, size, C]
    return Clips(taken.movedim(-1, 2).contiguous(), positions)


def translate(
    images: Tensor,
    frames: int,
    size: int,
    *,
    speed: int = 1,
    direction: Direction = "any",
    generator: torch.Generator | None = None,
) -> Clips:
    """Each image moves across a black canvas by a constant step, as in Moving MNIST (Srivastava et al., ICML 2015).

    In frame t of clip b, `frame[:, y : y + H, x : x + W]` with `(y, x) = positions[b, t]` is `images[b]`, all else 0.

    Args:
        images: `[B, C, H, W]`.
        frames: T of each clip.
        size: height and width of the canvas.
        speed, direction, generator: as in :func:`pan`.

    Raises:
        TypeError, ValueError: a canvas that the image would leave.
    """
    _check(images, frames, speed, direction)
    whole("size", size)
    height, width = images.shape[-2:]
    span = (frames - 1) * speed
    if size < max(height, width) + span:
        raise ValueError(
            f"size: got {size}, expected at least {max(height, width) + span}, the image's {height} x {width} pixels "
            f"and (frames - 1) * speed = {span}"
        )
    velocity = _velocities(len(images), speed, direction, generator)
    room = torch.tensor([size - height, size - width], device="cpu") - (frames - 1) * velocity.abs()
    positions = _paths(velocity, room, frames, generator).to(images.device)
    canvas = images.new_zeros(len(images), frames, size, size, images.shape[1])
    sample = torch.arange(len(images), device=images.device)[:, None, None, None]
    time = torch.arange(frames, device=images.device)[None, :, None, None]
    rows = positions[..., 0, None] + torch.arange(height, device=images.device)
    columns = positions[..., 1, None] + torch.arange(width, device=images.device)
    canvas[sample, time, rows[..., :, None], columns[..., None, :]] = images.movedim(1, -1)[:, None]
    return Clips(canvas.movedim(-1, 2).contiguous(), positions)


def _check(images: Tensor, frames: int, speed: int, direction: str) -> None:
    check_samples(images, clips=False, name="images")
    whole("frames", frames)
    whole("speed", speed)
    if direction not in DIRECTIONS:
        raise ValueError(f"direction: got {direction!r}, expected 'any' or 'right'")


def _velocities(n: int, speed: int, direction: str, generator: torch.Generator | None) -> Tensor:
    """Steps `[n, 2]` down and to the right, none of them zero in both directions; on the CPU."""
    device = "cpu" if generator is None else generator.device
    if direction == "right":
        across = torch.randint(1, speed + 1, (n,), generator=generator, device=device)
        return torch.stack([torch.zeros_like(across), across], 1).cpu()
    # All whole steps but (0, 0), equally likely: numbered row by row, and those from the middle on moved up by one.
    side = 2 * speed + 1
    number = torch.randint(side**2 - 1, (n,), generator=generator, device=device).cpu()
    number += number >= side**2 // 2
    return torch.stack([number // side, number % side], 1) - speed


def _paths(velocity: Tensor, room: Tensor, frames: int, generator: torch.Generator | None) -> Tensor:
    """Positions `[n, frames, 2]` that start anywhere from which they stay inside; `room` is what is left over."""
    device = "cpu" if generator is None else generator.device
    uniform = torch.rand(velocity.shape, generator=generator, device=device).cpu()
    low = (uniform * (room + 1)).long().minimum(room)
    start = torch.where(velocity < 0, low - (frames - 1) * velocity, low)
    return start[:, None] + torch.arange(frames, device="cpu")[:, None] * velocity[:, None]
