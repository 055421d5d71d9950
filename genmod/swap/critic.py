"""Mixins of a critic's layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from genmod.nn.critic import CriticConv2d
from genmod.ops.critic import critic_leaky_relu
from genmod.swap.classes import Swapped


class Conv2d(Swapped):
    """Mixin of `nn.Conv2d`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        module: Any = self
        convolve = nn.Conv2d._conv_forward if self._genmod_swap is None else CriticConv2d._conv_forward
        return convolve(module, input, weight, bias)


class LeakyReLU(Swapped):
    """Mixin of `nn.LeakyReLU`."""

    negative_slope: float

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.LeakyReLU`."""
        if self._genmod_swap is None or not input.dim():
            return super().forward(input)
        return critic_leaky_relu(input, self.negative_slope)


class ReLU(Swapped):
    """Mixin of `nn.ReLU`."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.ReLU`."""
        if self._genmod_swap is None or not input.dim():
            return super().forward(input)
        return critic_leaky_relu(input, 0.0)
