"""Checks that the dataclasses of models share; each message names the field, what it got and what is wanted."""

from __future__ import annotations

import math
from typing import Any

from genmod.ops._checks import choice

__all__ = ["choice", "flag", "image", "number", "whole"]


def whole(config: Any, *names: str) -> None:
    """Positive integers."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: got {value!r}, expected a positive integer")
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected a positive integer")


def number(config: Any, *names: str, above: float | None = None) -> None:
    """Finite numbers that are not negative; `above`, if given, that are greater."""
    for name in names:
        value = getattr(config, name)
        wanted = "a finite number >= 0" if above is None else f"a finite number > {above:g}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}: got {value!r}, expected {wanted}")
        if not math.isfinite(value) or value < 0 or (above is not None and value <= above):
            raise ValueError(f"{name}: got {value}, expected {wanted}")


def flag(config: Any, *names: str) -> None:
    """Booleans."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, bool):
            raise TypeError(f"{name}: got {value!r}, expected True or False")


def image(config: Any) -> None:
    """The fields that every model of images has: image_size, channels, latent_dim, width, stages."""
    whole(config, "image_size", "channels", "latent_dim", "width", "stages")
    halvings = 2**config.stages
    if config.image_size % halvings:
        raise ValueError(
            f"image_size: got {config.image_size}, expected a multiple of 2**stages = {halvings}, because every stage "
            "halves or doubles the image"
        )
