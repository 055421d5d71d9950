r"""Leaky ReLU by its mask, for critics under a gradient penalty.

.. math:: y = m\,x + (1 - m)\,\alpha x, \qquad m = [x > 0]

with slope :math:`\alpha`. The mask, a byte per element, is all that its derivatives need: the backward pass multiplies
by the same factor, and so does the backward pass of that. The second derivative is zero and is never computed. Source:
Maas, Hannun and Ng, *Rectifier nonlinearities improve neural network acoustic models*, 2013.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genmod import layout


def leaky_relu_mask(x: Tensor, negative_slope: float) -> tuple[Tensor, Tensor]:
    """:math:`y` and :math:`m`. A NaN is on the negative side, and stays one."""
    form = layout.memory_format_of(x)
    mask = (x > 0).contiguous(memory_format=form)
    return leaky_relu_apply(x, mask, negative_slope), mask


def leaky_relu_apply(x: Tensor, mask: Tensor, negative_slope: float) -> Tensor:
    """:math:`x` where the mask is set, and :math:`\\alpha x` elsewhere; in the memory format of the mask."""
    return torch.where(mask, x, x * negative_slope).contiguous(memory_format=layout.memory_format_of(mask))
