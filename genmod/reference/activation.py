"""The activations that ops apply inside, and their slopes, by name.

The slopes are differentiable in turn, which is what second derivatives of those ops are taken through. A piecewise
linear activation has a slope that does not depend on its argument as far as autograd knows, so its second derivative is
None instead of a tensor of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = ("identity", "relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid")


def apply(name: str, z: Tensor, negative_slope: float) -> Tensor:
    """The activation of `z`. `gelu` is the exact one, with erf; `negative_slope` is that of `leaky_relu`."""
    if name == "identity":
        return z
    if name == "leaky_relu":
        return F.leaky_relu(z, negative_slope)
    return _FUNCTIONS[name](z)


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def slope(name: str, z: Tensor, negative_slope: float) -> Tensor:
    """The derivative of :func:`apply` at `z`. At the kink of a ReLU it is the slope on the left, as torch has it."""
    if name == "identity":
        return torch.ones_like(z)
    if name in ("relu", "leaky_relu"):
        left = negative_slope if name == "leaky_relu" else 0.0
        return torch.where(z.detach() <= 0, torch.full_like(z, left), torch.ones_like(z))
    if name == "silu":
        s = torch.sigmoid(z)
        return s * (1 + z * (1 - s))
    if name == "gelu":
        density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
        return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * density
    if name == "tanh":
        return 1 - torch.tanh(z).square()
    s = torch.sigmoid(z)
    return s * (1 - s)


def curvature(name: str, z: Tensor) -> Tensor:
    """The second derivative of :func:`apply` at `z`; zeros where the activation is piecewise linear."""
    if name == "silu":
        s, rest = torch.sigmoid(z), torch.sigmoid(-z)
        return s * rest * (2 + z * (rest - s))
    if name == "gelu":
        return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi) * (2 - z.square())
    if name == "tanh":
        t = torch.tanh(z)
        return -2 * t * (1 - t.square())
    if name == "sigmoid":
        s, rest = torch.sigmoid(z), torch.sigmoid(-z)
        return s * rest * (rest - s)
    return torch.zeros_like(z)
