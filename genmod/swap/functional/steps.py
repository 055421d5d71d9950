"""Calls of functions as the modules that they stand for, so that one table of patterns covers both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn


def _upsample(
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> nn.Module:
    if antialias:
        raise TypeError("nn.Upsample has no antialias")
    return nn.Upsample(size, scale_factor, mode, align_corners, recompute_scale_factor)


#: The activations, by function and by method; in place or not is the same where nobody else sees the input.
_FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    F.silu: lambda inplace=False: nn.SiLU(),
    F.relu: lambda inplace=False: nn.ReLU(),
    F.relu_: nn.ReLU,
    F.leaky_relu: lambda negative_slope=0.01, inplace=False: nn.LeakyReLU(negative_slope),
    F.leaky_relu_: lambda negative_slope=0.01: nn.LeakyReLU(negative_slope),
    F.gelu: lambda approximate="none": nn.GELU(approximate),
    F.tanh: nn.Tanh,
    F.sigmoid: nn.Sigmoid,
    torch.relu: nn.ReLU,
    torch.relu_: nn.ReLU,
    torch.tanh: nn.Tanh,
    torch.sigmoid: nn.Sigmoid,
    F.interpolate: _upsample,
}
_METHODS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    "tanh": nn.Tanh,
    "tanh_": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "sigmoid_": nn.Sigmoid,
}
#: Names of functions, methods and modules that a forward with a pattern in it mentions.
NAMES = {"silu", "relu", "leaky_relu", "gelu", "group_norm", "interpolate", "exp", "randn_like"} | set(_METHODS)


def step(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """The module that computes what the node does with its one input, or None."""
    if node.op != "call_module":
        return function_step(node)
    return root.get_submodule(str(node.target)) if len(node.args) == 1 and not node.kwargs else None


def function_step(node: fx.Node) -> nn.Module | None:
    """The same of a function or method."""
    table: dict[Any, Callable[..., nn.Module]] = _FUNCTIONS if node.op == "call_function" else _METHODS
    if node.op not in ("call_function", "call_method") or node.target not in table:
        return None
    if list(node.all_input_nodes) != [node.args[0]] if node.args else True:
        return None  # no input, or an option that is computed
    try:
        return table[node.target](*node.args[1:], **node.kwargs)
    except TypeError:  # an option that the module does not have
        return None
