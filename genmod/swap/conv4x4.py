"""The mixins of 4x4 convolutions with stride 2."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from genmod import ops
from genmod.nn.convolution import suits_4x4
from genmod.swap.classes import Swapped


class Conv2d(Swapped):
    """Mixin of `nn.Conv2d`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        module: Any = self
        if self._genmod_swap is None or not suits_4x4(input, weight, False):
            return nn.Conv2d._conv_forward(module, input, weight, bias)
        return ops.conv4x4(input, weight, bias)


class ConvTranspose2d(Swapped):
    """Mixin of `nn.ConvTranspose2d`."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As `nn.ConvTranspose2d`."""
        if self._genmod_swap is None or output_size is not None or not suits_4x4(input, self.weight, True):
            return super().forward(input, output_size)
        return ops.conv4x4(input, self.weight, self.bias, transposed=True)
