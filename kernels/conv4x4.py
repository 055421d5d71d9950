"""4x4 convolutions with stride 2 on a GPU: cuDNN's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import layout
from genmod.reference.precision import without_autocast


def conv4x4(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """See genmod.reference.conv4x4."""
    convolve = F.conv_transpose2d if transposed else F.conv2d
    with without_autocast(x):
        y = convolve(x, weight, bias, stride=2, padding=1)
        return y.contiguous(memory_format=layout.memory_format_of(x))


def conv4x4_weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """See genmod.reference.conv4x4."""
    like = x.new_empty(1).expand(grad.shape[1], x.shape[1], 4, 4)
    one, two, nothing = [1, 1], [2, 2], [0, 0]
    with without_autocast(x):
        _, found, _ = torch.ops.aten.convolution_backward(
            grad, x, like, None, two, one, one, False, nothing, 1, [False, True, False]
        )
    return found.contiguous(memory_format=layout.memory_format_of(x))
