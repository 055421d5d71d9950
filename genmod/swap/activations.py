"""Activation modules of PyTorch, and what genmod's ops call them."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from genmod.ops.norm_act import Activation
from genmod.swap.classes import class_of

_NAMES: dict[type, Activation] = {
    nn.SiLU: "silu",
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.GELU: "gelu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}
MODULES = tuple(_NAMES)


class Options(NamedTuple):
    """An activation in the terms of the ops."""

    activation: Activation
    negative_slope: float


def options(module: nn.Module) -> Options:
    """The op's arguments that mean `module`."""
    return Options(_NAMES[class_of(module)], getattr(module, "negative_slope", 0.01))


def why_not(module: nn.Module) -> str:
    """Why no op means `module`."""
    if getattr(module, "approximate", "none") != "none":
        return "GELU by tanh is another function than the exact GELU"
    return ""
