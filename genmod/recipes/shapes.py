"""A small set of images made exactly from known factors, in the manner of dSprites (Matthey et al. 2017).

One white sprite on black, given by five factors: shape, scale, rotation, x and y. Every combination is one image, and
no two images are equal (as drawn by default; without antialiasing a few small sprites coincide), so the factors can be
read off the image. That takes one choice that dSprites made otherwise: the rotation goes through a quarter turn, after
which the square looks as before, instead of a whole turn.

Sprites move by whole pixels: a sprite at two places has the same pixels, and each has to be drawn only once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genmod.recipes import RecipeError
from genmod.recipes.data import ImageSet

FACTORS = ("shape", "scale", "rotation", "x", "y")
SHAPES = ("square", "ellipse", "heart")


@dataclass(frozen=True)
class ShapesConfig:
    """How many values each factor takes, and how the images are drawn.

    scales: radii (of the circle around the sprite) from half of `radius` to `radius` pixels. rotations: angles of equal
    spacing in [0, 90) degrees. positions: centres along each axis, one pixel apart, around the middle of the image.
    samples: each pixel is the share of samples x samples points inside of it that the sprite covers; 1 makes the images
    binary, as dSprites has them.
    """

    image_size: int = 32
    scales: int = 4
    rotations: int = 10
    positions: int = 12
    radius: float = 9.0
    samples: int = 4

    def __post_init__(self) -> None:
        for name in ("image_size", "scales", "rotations", "positions", "samples"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected a positive integer")
        if not 0 < self.radius < math.inf:
            raise ValueError(f"radius: got {self.radius!r}, expected a positive number of pixels")
        if 2 * self.radius + self.positions - 1 > self.image_size:
            raise ValueError(
                f"image_size: got {self.image_size}, expected at least 2 * radius + positions - 1 = "
                f"{2 * self.radius + self.positions - 1:g}, or sprites are cut off"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of values of each factor, in the order of FACTORS."""
        return len(SHAPES), self.scales, self.rotations, self.positions, self.positions


@dataclass(frozen=True)
class Shapes:
    """images: float32 [N, 1, H, W] in [0, 1]. factors: int64 [N, 5], the index of each factor's value.

    All combinations, the last factor varying fastest: image i has the factors `numpy.unravel_index(i, sizes)`.
    """

    config: ShapesConfig
    images: Tensor
    factors: Tensor

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.config.sizes

    def index(self, factors: Tensor) -> Tensor:
        """Which image has these factors: int64 [..., 5] -> int64 [...]. Raises ValueError where there is none."""
        sizes = torch.tensor(self.sizes)
        if factors.dtype != torch.int64 or factors.shape[-1:] != sizes.shape:
            raise ValueError(f"factors: got {factors.dtype} {tuple(factors.shape)}, expected int64 [..., {len(sizes)}]")
        if bool(((factors < 0) | (factors >= sizes)).any()):
            raise ValueError(f"factors: expected values from 0 to below {self.sizes}")
        strides = sizes.flip(0).cumprod(0).flip(0) // sizes
        return (factors * strides).sum(-1)

    def balanced(self, n: int, generator: torch.Generator, **fixed: int) -> Tensor:
        """Indices of n images among which each value of each factor appears equally often, give or take one.

        The factors are paired at random; the same image can appear twice. `fixed` holds factors at one value:
        `balanced(100, generator, shape=2)`.
        """
        if n < 0:
            raise ValueError(f"n: got {n}, expected at least 0")
        if unknown := set(fixed) - set(FACTORS):
            raise ValueError(f"unknown factors {sorted(unknown)}, expected some of {', '.join(FACTORS)}")
        columns = []
        for name, size in zip(FACTORS, self.sizes):
            if name in fixed:
                columns.append(torch.full((n,), fixed[name], dtype=torch.int64))
                continue
            # Which values get the remainder is drawn too, or a small n would always favour the first ones.
            values = torch.randperm(size, generator=generator).repeat(-(-n // size))[:n]
            columns.append(values[torch.randperm(n, generator=generator)])
        return self.index(torch.stack(columns, -1))

    def image_set(self, held_out: float = 0.1) -> ImageSet:
        """The images in random order (always the same), for a recipe that wants no factors."""
        count = len(self.images)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        return ImageSet("shapes", self.images[order], max(1, round(count * held_out)))


def make(config: ShapesConfig | None = None) -> Shapes:
    """Draw every combination of factors. The same configuration gives the same bits."""
    config = config or ShapesConfig()
    sprites = _sprites(config)
    size, window = config.image_size, sprites.shape[-1]
    # The window's corner for the first position; the middle position is the middle of the image.
    first = (size - window - (config.positions - 1)) // 2
    images = torch.zeros(len(sprites), config.positions, config.positions, size, size)
    for i in range(config.positions):
        for j in range(config.positions):
            x, y = first + i, first + j
            images[:, i, j, y : y + window, x : x + window] = sprites
    values = [torch.arange(n) for n in config.sizes]
    return Shapes(config, images.reshape(-1, 1, size, size), torch.cartesian_prod(*values))


def load(name: str = "shapes") -> ImageSet:
    """The set of the default configuration as an :class:`ImageSet`."""
    if name != "shapes":
        raise RecipeError(f"--data: got {name!r}, expected 'shapes'")
    return make().image_set()


def _sprites(config: ShapesConfig) -> Tensor:
    """One sprite for each shape, scale and rotation, in the middle of a window: [sprites, window, window].

    The window has as many pixels as keep every sprite inside, and the parity that puts its centre, between two pixels
    or on one, where the centres of the positions are.
    """
    window = math.ceil(2 * config.radius)
    window += (config.image_size - window - (config.positions - 1)) % 2
    step = 1 / config.samples
    # float64: which points lie inside an outline is then decided far from rounding errors.
    points = (torch.arange(window * config.samples, dtype=torch.float64) + 0.5) * step - window / 2
    down, right = points[:, None], points[None, :]
    sprites = []
    for inside in INSIDE.values():
        for scale in range(config.scales):
            share = 1.0 if config.scales == 1 else 0.5 + 0.5 * scale / (config.scales - 1)
            for rotation in range(config.rotations):
                angle = math.pi / 2 * rotation / config.rotations
                along = (right * math.cos(angle) + down * math.sin(angle)) / (share * config.radius)
                across = (down * math.cos(angle) - right * math.sin(angle)) / (share * config.radius)
                covered = inside(along, across).reshape(window, config.samples, window, config.samples)
                sprites.append(covered.float().mean((1, 3)))
    return torch.stack(sprites)


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) <= 1 / math.sqrt(2)


def _ellipse(x: Tensor, y: Tensor) -> Tensor:
    return x.square() + (2 * y).square() <= 1


def _heart(x: Tensor, y: Tensor) -> Tensor:
    # The sextic (u² + v² - 1)³ = u² v³, which lies within 1.27 of (0, 0.12); v points up where images point down.
    u, v = 1.34 * x, 0.12 - 1.34 * y
    return (u.square() + v.square() - 1) ** 3 <= u.square() * v**3


#: Whether a point is inside the sprite, which the unit circle holds.
INSIDE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"square": _square, "ellipse": _ellipse, "heart": _heart}
