"""3x3 convolutions on a GPU: cuDNN's, which chooses among algorithms of its own, minimal filtering among them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import layout
from genmod.reference.precision import without_autocast


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """See genmod.reference.conv3x3."""
    convolve = F.conv_transpose2d if transposed else F.conv2d
    with without_autocast(x):
        return convolve(x, weight, bias, padding=1).contiguous(memory_format=layout.memory_format_of(x))


def conv3x3_weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """See genmod.reference.conv3x3."""
    like = x.new_empty(1).expand(grad.shape[1], x.shape[1], 3, 3)
    one, nothing = [1, 1], [0, 0]
    with without_autocast(x):
        _, found, _ = torch.ops.aten.convolution_backward(
            grad, x, like, None, one, one, one, False, nothing, 1, [False, True, False]
        )
    return found.contiguous()
