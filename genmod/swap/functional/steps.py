"""Calls of functions as the modules that they stand for, so that one table of patterns covers both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

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
    F.interpolate: lambda size=None, scale_factor=None, mode="nearest": nn.Upsample(size, scale_factor, mode),
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
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if node.op == "call_module":
        return root.get_submodule(str(node.target)) if len(node.args) == 1 and not node.kwargs else None
    table: dict[Any, Callable[..., nn.Module]] = _FUNCTIONS if node.op == "call_function" else _METHODS
    if node.op not in ("call_function", "call_method") or node.target not in table:
        return None
    if len(node.all_input_nodes) != 1:
        return None  # an option is computed
    try:
        return table[node.target](*node.args[1:], **node.kwargs)
    except TypeError:  # an option that the module does not have
        return None
