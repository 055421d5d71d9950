r"""Nearest-neighbour upsampling by two, then a 3x3 convolution with padding 1, without the upsampled image.

Each output pixel sees only 2x2 different input pixels, because two of the three rows under a kernel (and two of the
three columns) are copies of one. So the pair is one linear map with fewer multiplications, in three forms:

* **folded**, what is computed here and on GPUs: a transposed convolution, kernel 4, stride 2, padding 1, whose weight
  is, along each axis, :math:`(w_2,\ w_1 + w_2,\ w_0 + w_1,\ w_0)`. 16 multiplications per input pixel and pair of
  channels, where upsampling first takes 36.
* **minimal filtering**, what the CPU kernel computes forward: that of genmod/reference/conv3x3.py. In the patch of an
  upsampled pixel the two rows, and columns, in the middle are equal, so that 9 of its 16 products are left.
* **taps first**, of the CPU kernel's backward, and where there are few pixels: all nine products
  :math:`t_{ab} = w_{ab}\,x` at the low resolution, which is one matrix product, and then sums of nine of them per
  output pixel: 9 multiplications as well. With rows
  :math:`i = 2m + r` of the output, and columns alike,

  .. math::
      y_{2m} = t_0[m - 1] + t_1[m] + t_2[m], \qquad y_{2m+1} = t_0[m] + t_1[m] + t_2[m + 1].

  The other way around, the gradient :math:`g` is summed over 2x2 windows first,
  :math:`s_a[m] = g[2m + 1 - a] + g[2m + 2 - a]`, and two matrix products of that give both gradients.

The fold is that of sub-pixel convolution (Shi et al., *Is the deconvolution layer the same as a convolutional layer?*,
2016) for the kernel of the nearest neighbour; upsampling before a convolution: Odena, Dumoulin and Olah, *Deconvolution
and checkerboard artifacts*, Distill 2016. Sums of weights are rounded once, in float32 (float64 for float64).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import layout
from genmod.reference.precision import widen, without_autocast

#: The folded form as arguments of a transposed convolution.
STRIDE, PADDING = [2, 2], [1, 1]


def fold(weight: Tensor, groups: int) -> Tensor:
    """`[Cout, Cin / groups, 3, 3]` to the transposed convolution's `[Cin, Cout / groups, 4, 4]`."""
    folded = _fold_axis(_fold_axis(weight, 2), 3)
    return _swap_channels(folded, groups)


def unfold(folded: Tensor, groups: int) -> Tensor:
    """The transpose of :func:`fold`, which takes the gradient of its result to that of the weight."""
    return _unfold_axis(_unfold_axis(_swap_channels(folded, groups), 2), 3)


def _fold_axis(w: Tensor, dim: int) -> Tensor:
    w0, w1, w2 = w.unbind(dim)
    return torch.stack((w2, w1 + w2, w0 + w1, w0), dim)


def _unfold_axis(f: Tensor, dim: int) -> Tensor:
    f0, f1, f2, f3 = f.unbind(dim)
    return torch.stack((f2 + f3, f1 + f2, f0 + f1), dim)


def _swap_channels(w: Tensor, groups: int) -> Tensor:
    """`[groups * A, B, ...]` to `[groups * B, A, ...]`."""
    first, second, *kernel = w.shape
    grouped = w.reshape(groups, first // groups, second, *kernel).transpose(1, 2)
    return grouped.reshape(groups * second, first // groups, *kernel)


def upsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Upsample `x` `[N, Cin, H, W]` and convolve with `weight` `[Cout, Cin / groups, 3, 3]`: `[N, Cout, 2H, 2W]`."""
    with without_autocast(x):
        folded = fold(widen(weight), groups)
        wide_bias = None if bias is None else widen(bias)
        y = F.conv_transpose2d(widen(x), folded, wide_bias, STRIDE, PADDING, groups=groups)
    return y.to(x.dtype).contiguous(memory_format=layout.memory_format_of(x))


def upsample_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, groups: int, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`upsample_conv2d` for `(x, weight, bias)`; bit i of `wanted` asks for gradient i, and one that
    is not wanted is an empty tensor."""
    with without_autocast(x):
        dx, d_folded, d_bias = torch.ops.aten.convolution_backward(
            widen(grad), widen(x), fold(widen(weight), groups), [weight.shape[0]], STRIDE, PADDING, [1, 1],
            True, [0, 0], groups, [bool(wanted & 1), bool(wanted & 2), bool(wanted & 4)],
        )  # fmt: skip
        d_weight = unfold(d_folded, groups) if wanted & 2 else None
    return (
        dx.to(x.dtype).contiguous(memory_format=layout.memory_format_of(x)) if wanted & 1 else x.new_empty(0),
        x.new_empty(0)
        if d_weight is None
        else d_weight.to(x.dtype).contiguous(memory_format=layout.memory_format_of(weight)),
        d_bias.to(x.dtype) if wanted & 4 else x.new_empty(0),
    )
