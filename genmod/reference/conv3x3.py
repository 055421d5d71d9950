r"""3x3 convolutions with stride and padding 1, which is what decoders and residual blocks consist of.

.. math::
    y_{o,i,j} = b_o + \sum_{c,a,b} w_{o,c,a,b}\; x_{c,\,i + a - 1,\,j + b - 1}

and the gradient by the weight, of an image and the result's gradient g, is

.. math::
    \partial w_{o,c,a,b} = \sum_{n,i,j} g_{o,i,j}\; x_{c,\,i + a - 1,\,j + b - 1}

The reference, and a GPU, leave that to PyTorch's own convolution. The CPU kernel computes it by Winograd's minimal
filtering: for each 2x2 tile of the output, and the 4x4 patch d of the input that it is made from,

.. math::
    A^\top \Big[\sum_c (G w_{oc} G^\top) \odot (B^\top d_c B)\Big] A

    B^\top = \begin{pmatrix} 1 & 0 & -1 & 0\\ 0 & 1 & 1 & 0\\ 0 & -1 & 1 & 0\\ 0 & 1 & 0 & -1 \end{pmatrix}, \quad
    G = \begin{pmatrix} 1 & 0 & 0\\ \tfrac12 & \tfrac12 & \tfrac12\\ \tfrac12 & -\tfrac12 & \tfrac12\\ 0 & 0 & 1
    \end{pmatrix}, \quad
    A^\top = \begin{pmatrix} 1 & 1 & 1 & 0\\ 0 & 1 & -1 & -1 \end{pmatrix}

and the gradient by the weight is the transpose of that, :math:`G^\top [\sum (A g A^\top) \odot (B^\top d B)] G`. That
is 16 multiplications for each pair of channels and tile where there are 36. The same sums in another order: their
rounding is that of a convolution, because the transforms add few numbers, and sums over channels are a ninth as long.

Sources: Winograd, *Arithmetic complexity of computations*, 1980; Lavin and Gray, *Fast algorithms for convolutional
neural networks*, CVPR 2016.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import layout
from genmod.reference.precision import widen, without_autocast


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """`x` convolved with `weight`, or `transposed`: the gradient by its input of a convolution with that weight. In the
    memory format of `x`; half precision is summed in float32."""
    convolve = F.conv_transpose2d if transposed else F.conv2d
    wide = None if bias is None else widen(bias)
    with without_autocast(x):
        y = convolve(widen(x), widen(weight), wide, padding=1)
    return y.to(x.dtype).contiguous(memory_format=layout.memory_format_of(x))


def conv3x3_weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of a convolution of `x` by its weight, contiguous."""
    shape = (grad.shape[1], x.shape[1], 3, 3)
    one, nothing = [1, 1], [0, 0]
    with without_autocast(x):
        wide, image = widen(grad), widen(x)
        mask, like = [False, True, False], image.new_empty(1).expand(shape)
        _, found, _ = torch.ops.aten.convolution_backward(
            wide, image, like, None, one, one, one, False, nothing, 1, mask
        )
    return found.to(x.dtype).contiguous()
