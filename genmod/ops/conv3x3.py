"""Family `conv3x3`: convolutions with a 3x3 kernel, stride 1 and padding 1.

The public function checks its arguments and calls the dispatcher; schema, fake and autograd are those of
`genmod.ops._convolution_ops`. The maths is in `genmod.reference.conv3x3`.
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
from genmod.ops._tracing import is_traced

#: Elements of an image beyond which it does not matter what a call costs.
_SMALL = 65536
#: Channels below which PyTorch's own convolution is always faster.
FEWEST_CHANNELS = 32


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""`conv2d(x, weight, bias, padding=1)` with a 3x3 kernel, on a CPU with 16 multiplications where that has 36.

    .. math::
        y_{o,i,j} = b_o + \sum_{c,a,b} w_{o,c,a,b}\; x_{c,\,i + a - 1,\,j + b - 1}

    Args:
        x: `[N, Cin, H, W]`, any size, also an empty batch; float32, float64, bfloat16 or float16.
        weight: `[Cout, Cin, 3, 3]`; dtype and device of `x`.
        bias: `[Cout]`, optional.

    Returns:
        `[N, Cout, H, W]`, in the dtype and memory format of `x`. Under autocast, as a convolution: in its dtype. Where
        a pixel or weight is infinite, a result may be NaN that is infinite in a convolution: differences are formed.

    Raises:
        TypeError: not a tensor, not floating point, or dtypes that differ.
        ValueError: `x` that is not 4-d or has no pixels or channels, a weight or bias of the wrong shape (a kernel
            other than 3x3 too), devices that differ, or a result larger than the memory of the device.

    Differentiable to any order, in `x`, `weight` and `bias`, by the same kernels. Kept for backward: `x` and `weight`.
    Nothing is cached, so the weight may change in any way between two calls. On a GPU, in half precision, and where
    there is little to do, it is PyTorch's own convolution.
    Sources: Winograd, *Arithmetic complexity of computations*, 1980; Lavin and Gray, *Fast algorithms for convolutional
    neural networks*, CVPR 2016.
    """
    y = _small(x, weight, bias)
    if y is not None:
        return y
    x, weight, bias = autocast(x, weight, bias)
    _check(x, weight, bias)
    if torch._C._are_functorch_transforms_active() or _stock_is_faster(x, weight):
        return F.conv2d(x, weight, bias, padding=1).contiguous(memory_format=layout.memory_format_of(x))
    return _conv3x3(x, weight, bias, False)


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`conv3x3` of these has something else to offer than PyTorch's convolution."""
    return not (torch._C._are_functorch_transforms_active() or _stock_is_faster(x, weight))


def _stock_is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch's own convolution was measured to be faster than the CPU's kernel.

    That is so where channels do not fill the kernel's registers, and where the weight's transform, which is made at
    each call, is shared by few tiles of 2x2 pixels. Measured with two threads and AVX-512, float32, forward and
    forward+backward, as eager's time over ours, contiguous and channels_last:

        [4, 64, 8, 8] to 64      1.17 0.94    1.32 0.88        [8, 256, 4, 4] to 256       0.45 0.54    0.82 0.83
        [1, 64, 16, 16] to 64    1.14 0.90    1.39 0.96        [8, 256, 8, 8] to 256       0.93 0.71    1.03 0.96
        [4, 16, 32, 32] to 16    1.38 0.93    0.86 0.68        [1, 256, 32, 32] to 256     1.21 1.21    1.13 1.05
        [1, 32, 32, 32] to 32    1.58 1.17    1.28 0.90        [1, 128, 16, 16] to 128     1.00 0.88    0.92 0.79
        [1, 64, 32, 32] to 64    1.57 1.08    1.38 1.00        [1, 128, 32, 32] to 128     1.29 1.15    1.24 1.07
        [16, 8, 32, 32] to 32    1.22 0.98    0.50 0.54        [1, 64, 128, 128] to 64     1.78 1.27    1.65 1.40

    With gradients the smaller ones are too small for the calls around the kernels.
    """
    if backends.forced() is not None:
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return True
    outputs, inputs = weight.shape[:2]
    tiles, pairs = x.shape[0] * x.shape[2] * x.shape[3] // 4, outputs * inputs
    if min(outputs, inputs) < FEWEST_CHANNELS or tiles < max(192, pairs // 256):
        return True
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad) and tiles * pairs < 1_500_000


def _small(x: Any, weight: Any, bias: Any) -> Tensor | None:
    """PyTorch's own of an ordinary call that is too small for the checks of one; None of any other, or of a wrong one.

    What it looks at is what PyTorch would take and we would not; what PyTorch refuses, the caller checks and names.
    """
    try:
        if not (
            not is_traced()
            and type(x) is Tensor
            and 0 < x.numel() < _SMALL
            and x.is_contiguous()
            and x.dtype is weight.dtype is torch.float32
            and x.is_cpu
            and weight.is_cpu
            and weight.shape[2:] == (3, 3)
            and x.shape[1] == weight.shape[1]
            and weight.shape[0] > 0
            and not torch._C._are_functorch_transforms_active()
            and not torch._C._is_any_autocast_enabled()
            and _stock_is_faster(x, weight)
        ):
            return None
        return torch.conv2d(x, weight, bias, 1, 1)
    except (AttributeError, IndexError, RuntimeError, TypeError):
        return None


# Arguments.


def _check(x: Any, weight: Any, bias: Any) -> None:
    check_image(x)
    channels = x.shape[1]
    _checks.tensor("weight", weight)
    if weight.shape[1:] != (channels, 3, 3) or weight.shape[0] == 0:
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}, expected [Cout, {channels}, 3, 3]: a kernel of 3x3, for the "
            f"{channels} channels of x"
        )
    _checks.same_kind("weight", weight, "x", x)
    check_bias(bias, x, weight.shape[0])
    _checks.fits("x", x, (x.shape[0], weight.shape[0], *x.shape[2:]))


_conv3x3 = define_convolution("conv3x3", lambda size, transposed: size, kernel=3)


def _why_plain(x: Tensor, weight: Tensor, *args: object, **kwargs: object) -> str:
    """For `genmod.explain`."""
    return "PyTorch's own is as fast here, or faster" if _stock_is_faster(x, weight) else ""


backends.register_public("conv3x3", "conv3x3", _why_plain)
