r"""4x4 convolutions with stride 2 and padding 1, and their transposes: how DCGAN's critic and generator change the size
of an image.

With x the larger map, of twice the height and width, and y the smaller one,

.. math::
    y_{o,i,j} = b_o + \sum_{c,a,b} w_{o,c,a,b}\; x_{c,\,2i + a - 1,\,2j + b - 1}

is the convolution, and the transposed one, of y,

.. math::
    x_{c,k,l} = b_c + \sum_{o} \sum_{\substack{a,\,i:\; 2i + a - 1 = k\\ b,\,j:\; 2j + b - 1 = l}}
    w_{o,c,a,b}\; y_{o,i,j}

The gradient by the weight, of the larger map and the smaller one's gradient g, or the other way round, is

.. math::
    \partial w_{o,c,a,b} = \sum_{n,i,j} g_{o,i,j}\; x_{c,\,2i + a - 1,\,2j + b - 1}

The reference, and a GPU, leave that to PyTorch's own convolutions. The CPU kernel takes the larger map apart by the
parity of rows and columns: even rows meet the taps 1 and 3 of a column, odd ones 0 and 2, so that each of four phases
is a 2x2 convolution. Winograd's minimal filtering makes 2x2 outputs of those from the 3x3 patch d of the phase by

.. math::
    A^\top \big[(G w G^\top) \odot (B^\top d B)\big] A

    B^\top = \begin{pmatrix} 1 & -1 & 0\\ 0 & 1 & 0\\ 0 & 1 & -1 \end{pmatrix}, \quad
    G = \begin{pmatrix} 1 & 0\\ 1 & 1\\ 0 & 1 \end{pmatrix}, \quad
    A^\top = \begin{pmatrix} 1 & 1 & 0\\ 0 & 1 & -1 \end{pmatrix}

which is 9 multiplications where there are 16. From the larger map to the smaller one the products are summed over
phases and channels before A, the other way each phase has its own. The gradient by the weight is the transpose,
:math:`G^\top [\sum (A g A^\top) \odot (B^\top d B)] G`. The transforms add two numbers at a time, and nothing else.
Where the larger map has up to four channels it is a matrix product instead, of the sixteen taps of each with the
other's channels.

Sources: Radford, Metz and Chintala, *DCGAN*, ICLR 2016; Winograd, *Arithmetic complexity of computations*, 1980.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import layout
from genmod.reference.precision import widen, without_autocast


def conv4x4(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """`x` convolved with `weight`, or `transposed`: the gradient by its input of a convolution with that weight. In the
    memory format of `x`; half precision is summed in float32."""
    convolve = F.conv_transpose2d if transposed else F.conv2d
    wide = None if bias is None else widen(bias)
    with without_autocast(x):
        y = convolve(widen(x), widen(weight), wide, stride=2, padding=1)
    return y.to(x.dtype).contiguous(memory_format=layout.memory_format_of(x))


def conv4x4_weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of a convolution of `x` by its weight, in the memory format of `x`."""
    shape = (grad.shape[1], x.shape[1], 4, 4)
    one, two, nothing = [1, 1], [2, 2], [0, 0]
    with without_autocast(x):
        wide, image = widen(grad), widen(x)
        mask, like = [False, True, False], image.new_empty(1).expand(shape)
        _, found, _ = torch.ops.aten.convolution_backward(
            wide, image, like, None, two, one, one, False, nothing, 1, mask
        )
    return found.to(x.dtype).contiguous(memory_format=layout.memory_format_of(x))
