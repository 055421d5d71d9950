"""The mixin of 3x3 convolutions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from genmod import ops
from genmod.nn.convolution import suits
from genmod.swap.classes import Swapped


class Conv2d(Swapped):
    """Mixin of `nn.Conv2d`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        module: Any = self
        if self._genmod_swap is None or not suits(input, weight):
            return nn.Conv2d._conv_forward(module, input, weight, bias)
        return ops.conv3x3(input, weight, bias)
