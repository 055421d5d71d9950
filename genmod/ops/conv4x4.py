"""Family `conv4x4`: convolutions with a 4x4 kernel, stride 2 and padding 1, and their transposes.

The public function checks its arguments and calls the dispatcher; schema, fake and autograd are those of
`genmod.ops._convolution_ops`. The maths is in `genmod.reference.conv4x4`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import backends, layout
from genmod.ops import _checks
from genmod.ops._convolution_arguments import autocast, check_bias, check_image
from genmod.ops._convolution_ops import define_convolution
from genmod.ops._convolution_tiles import FORWARD, TRANSPOSED, by_tiles

_conv4x4 = define_convolution(
    "conv4x4", lambda size, transposed: 2 * size if transposed else size // 2, kernel=4, follows_image=True
)


def conv4x4(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, transposed: bool = False) -> Tensor:
    r"""`conv2d`, or `conv_transpose2d`, with a 4x4 kernel, stride 2 and padding 1: an image of half or twice the size,
    on a CPU with 9 multiplications where that has 16.

    .. math::
        y_{o,i,j} = b_o + \sum_{c,a,b} w_{o,c,a,b}\; x_{c,\,2i + a - 1,\,2j + b - 1}

    and transposed

    .. math::
        y_{o,k,l} = b_o + \sum_{c} \sum_{\substack{a,\,i:\; 2i + a - 1 = k\\ b,\,j:\; 2j + b - 1 = l}}
        w_{c,o,a,b}\; x_{c,i,j}

    Args:
        x: `[N, Cin, H, W]`, of even height and width unless `transposed`, also an empty batch; float32, float64,
            bfloat16 or float16.
        weight: `[Cout, Cin, 4, 4]`, `transposed` `[Cin, Cout, 4, 4]`; dtype and device of `x`.
        bias: `[Cout]`, optional.
        transposed: whether to double the size rather than halve it.

    Returns:
        `[N, Cout, H / 2, W / 2]`, or `[N, Cout, 2 H, 2 W]`, in the dtype and memory format of `x`. Under autocast, as a
        convolution: in its dtype. Where a pixel or weight is infinite, a result may be NaN that is infinite in a
        convolution: differences are formed. So may a weight's gradient be, in all of its taps, where a pixel is NaN.

    Raises:
        TypeError: not a tensor, not floating point, or dtypes that differ.
        ValueError: `x` that is not 4-d, has no pixels or channels, or an odd size that was to be halved; a weight or
            bias of the wrong shape (a kernel other than 4x4 too), devices that differ, or a result larger than the
            memory of the device.

    Differentiable to any order, in `x`, `weight` and `bias`, by the same kernels. Kept for backward: `x` and `weight`.
    Nothing is cached, so the weight may change in any way between two calls. On a GPU, in half precision, and where
    there is little to do, it is PyTorch's own convolution. `critic_conv2d`, `conv_transpose2d_norm_act` and
    `penalties.critic_step` take the same kernels where these are faster.
    Sources: Radford, Metz and Chintala, *DCGAN*, ICLR 2016; Winograd, *Arithmetic complexity of computations*, 1980.
    """
    x, weight, bias = autocast(x, weight, bias)
    _check(x, weight, bias, transposed)
    if not is_faster(x, weight, transposed):
        convolve = F.conv_transpose2d if transposed else F.conv2d
        y = convolve(x, weight, bias, stride=2, padding=1)
        return y.contiguous(memory_format=layout.memory_format_of(x))
    return _conv4x4(x, weight, bias, transposed)


def is_faster(x: Tensor, weight: Tensor, transposed: bool) -> bool:
    """Whether :func:`conv4x4` of these has something else to offer than PyTorch's convolution."""
    return not (torch._C._are_functorch_transforms_active() or _stock_is_faster(x, weight, transposed))


def _stock_is_faster(x: Tensor, weight: Tensor, transposed: bool = False) -> bool:
    if backends.forced() is not None:
        return False
    small = x.shape if transposed else (*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)
    return not by_tiles(TRANSPOSED if transposed else FORWARD, x, small, weight.shape)


# Arguments.


def _check(x: Any, weight: Any, bias: Any, transposed: bool) -> None:
    check_image(x)
    channels = x.shape[1]
    _checks.tensor("weight", weight)
    inputs, outputs = (0, 1) if transposed else (1, 0)
    shape = weight.shape
    if len(shape) != 4 or shape[inputs] != channels or shape[2:] != (4, 4) or shape[outputs] == 0:
        expected = f"[{channels}, Cout, 4, 4]" if transposed else f"[Cout, {channels}, 4, 4]"
        raise ValueError(
            f"weight: got shape {tuple(shape)}, expected {expected}: a kernel of 4x4, for the {channels} channels of x"
        )
    _checks.same_kind("weight", weight, "x", x)
    check_bias(bias, x, shape[outputs])
    height, width = x.shape[2:]
    if not transposed and (height % 2 or width % 2):
        raise ValueError(f"x: got {height} x {width} pixels, expected an even height and width to be halved")
    factor = 2.0 if transposed else 0.5
    _checks.fits("x", x, (x.shape[0], shape[outputs], int(factor * height), int(factor * width)))


def _why_plain(x: Tensor, weight: Tensor, *args: object, transposed: bool = False, **kwargs: object) -> str:
    """For `genmod.explain`."""
    return "PyTorch's own is as fast here, or faster" if _stock_is_faster(x, weight, transposed) else ""


backends.register_public("conv4x4", "conv4x4", _why_plain)
