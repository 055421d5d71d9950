"""Family `upsample_conv`: the two ways in which decoders double the size of an image, fused with what follows.

The public functions check their arguments, hand calls that stock PyTorch is faster at to it, and call the dispatcher
for the rest; schemas, fakes and autograd stand below them. The maths is in `genmod.reference.upsample_conv`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import backends, layout
from genmod.ops import _checks, norm_act
from genmod.ops._convolution import Geometry, transposed_is_own
from genmod.ops._convolution_arguments import autocast, check_bias, check_image, check_image_shape
from genmod.ops._differentiable_convolution import convolve_transposed
from genmod.ops._library import define, differentiate
from genmod.ops._tracing import are_differentiated, is_traced
from genmod.ops.norm_act import ACTIVATIONS, Activation, bias_act
from genmod.reference import upsample_conv as reference
from genmod.reference.precision import without_autocast


def upsample_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    groups: int = 1,
    activation: Activation = "identity",
    negative_slope: float = 0.01,
) -> Tensor:
    r"""`conv2d(interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)` with a 3x3 kernel, exactly,
    without the upsampled image and with a quarter of the multiplications; and an activation of it.

    .. math::
        y_{o,i,j} = \operatorname{act}\Big(b_o + \sum_{c,a,b} w_{o,c,a,b}\;
        x_{c,\lfloor (i + a - 1)/2 \rfloor, \lfloor (j + b - 1)/2 \rfloor}\Big)

    Args:
        x: `[N, Cin, H, W]`, any size, also an empty batch; float32, float64, bfloat16 or float16.
        weight: `[Cout, Cin / groups, 3, 3]`, that of the convolution; dtype and device of `x`.
        bias: `[Cout]`, optional.
        groups: as in `torch.nn.functional.conv2d`.
        activation, negative_slope: as in :func:`genmod.ops.bias_act`.

    Returns:
        `[N, Cout, 2H, 2W]`, in the dtype and memory format of `x`. Under autocast, as a convolution: in its dtype.

    Raises:
        TypeError: not a tensor, not floating point, or dtypes that differ.
        ValueError: `x` that is not 4-d or has no pixels or channels, a weight or bias of the wrong shape (a kernel
            other than 3x3 too), `groups` that do not divide the channels, devices that differ, an unknown `activation`,
            or a result larger than the memory of the device.

    Differentiable to any order without an activation, twice with one, in `x`, `weight` and `bias`. Kept for backward:
    `x` and `weight`, and with an activation what it is taken of. Half precision is summed in float32. Nothing is
    cached: on the CPU the weight is used as it is, on a GPU it is folded at each call, so it may change in any way
    between two of them.
    Sources: Odena, Dumoulin and Olah, *Deconvolution and checkerboard artifacts*, Distill 2016; Shi et al., *Is the
    deconvolution layer the same as a convolutional layer?*, 2016.
    """
    _checks.choice("activation", activation, ACTIVATIONS)
    _checks.number("negative_slope", negative_slope)
    x, weight, bias = autocast(x, weight, bias)
    _check_upsample(x, weight, bias, groups)
    plain = torch._C._are_functorch_transforms_active()
    convolve = reference.upsample_conv2d if plain else _upsample_conv2d
    if not plain and _stock_is_faster(x, weight, groups):
        convolve = _stock
    if activation == "identity":
        return convolve(x, weight, bias, groups)
    if plain or are_differentiated(x, weight, bias):
        y = convolve(x, weight, None, groups)
        return bias_act(y, bias, activation=activation, negative_slope=negative_slope)
    return _activate_(convolve(x, weight, bias, groups), activation, negative_slope)


def conv_transpose2d_norm_act(
    x: Tensor,
    weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 2,
    padding: int | tuple[int, int] = 1,
    output_padding: int | tuple[int, int] = 0,
    groups: int = 1,
    activation: Activation = "relu",
    negative_slope: float = 0.01,
) -> Tensor:
    r"""A transposed convolution, batch norm and an activation: the block that DCGAN's generator is built of.

    .. math::
        y = \operatorname{act}\left(\frac{c - \mu}{\sqrt{v + \epsilon}}\,\gamma + \beta\right), \qquad
        c = x * w^\top + b

    The convolution is PyTorch's own (oneDNN's, cuDNN's), and most of the time; the rest is :func:`batch_norm_act`.

    Args:
        x: `[N, Cin, H, W]`; float32, float64, bfloat16 or float16.
        weight: `[Cin, Cout / groups, kH, kW]`, that of a transposed convolution; dtype and device of `x`.
        running_mean, running_var, training, momentum, eps, activation, negative_slope: as in
            :func:`genmod.ops.batch_norm_act`.
        norm_weight, norm_bias: :math:`\gamma` and :math:`\beta`, `[Cout]`, each optional.
        bias: that of the convolution, `[Cout]`, optional; batch norm takes it away again in training.
        stride, padding, output_padding, groups: as in `torch.nn.functional.conv_transpose2d`; the defaults double the
            image, with a kernel of 4x4.

    Returns:
        `y`, `[N, Cout, H', W']`, in the dtype of `x`, with
        :math:`H' = (H - 1)\,\text{stride} - 2\,\text{padding} + kH + \text{output\_padding}`. Under autocast, as a
        convolution: in its dtype.

    Raises:
        TypeError: not a tensor, not floating point, dtypes that differ, or an option of the wrong type.
        ValueError: `x` that is not 4-d or has no pixels or channels, a weight or bias of the wrong shape, `groups` that
            do not divide the channels, a geometry that leaves no output, a result larger than the memory of the device,
            and all that :func:`genmod.ops.batch_norm_act` raises.

    Differentiable twice, in `x`, `weight`, `bias`, `norm_weight` and `norm_bias`. Kept for backward: `x`, `weight` and
    the convolution's result.
    Sources: Radford, Metz and Chintala, *Unsupervised representation learning with deep convolutional generative
    adversarial networks*, ICLR 2016; Ioffe and Szegedy, *Batch normalization*, ICML 2015.
    """
    x, weight, bias = autocast(x, weight, bias)
    shape, geometry, more = _check_transposed(x, weight, bias, stride, padding, output_padding, groups)
    # All checks come ahead of the convolution: what takes long should not begin before the call is known to be right.
    norm = {"norm_weight": norm_weight, "norm_bias": norm_bias}
    norm_act.check_batch_norm(x, shape, running_mean, running_var, training, momentum, **norm)
    norm_act.check_options(x, None, eps, activation, negative_slope)
    with without_autocast(x):
        image = conv_transpose2d(x, weight, bias, geometry, more)
    options = training, momentum, eps, activation, negative_slope
    y, _ = norm_act.checked_batch_norm_act(image, running_mean, running_var, norm_weight, norm_bias, *options, None)
    return y


def conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, output_padding: tuple[int, int]
) -> Tensor:
    """`torch.nn.functional.conv_transpose2d`, in ways of ours where these are faster on a CPU."""
    plain = is_traced() or torch._C._are_functorch_transforms_active()
    if plain or not transposed_is_own(x, weight, geometry, output_padding):
        stride, padding, dilation, groups = geometry
        return F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return convolve_transposed(x, weight, bias, geometry, output_padding)


def _stock(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    channels = weight.shape[1]
    if weight.stride() not in ((9 * channels, 9, 3, 1), (9 * channels, 1, 3 * channels, channels)):
        weight = weight.contiguous()  # in other layouts its gradient is an error in stock PyTorch
    y = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1, groups=groups)
    return y.contiguous(memory_format=layout.memory_format_of(x))


def _stock_is_faster(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether upsampling and convolving was measured to be faster than the CPU's kernel.

    That is so where there is little to do, and where oneDNN has kernels for groups of few channels. Measured with two
    threads and AVX-512, float32, forward and forward+backward, as eager's time over ours, contiguous and channels_last:

        [1, 8, 4, 4] to 8        0.98 0.83    0.69 0.68        [4, 64, 16, 16], 64 groups    0.96 1.00    0.14 0.08
        [4, 3, 16, 16] to 16     2.26 1.42    0.91 1.05                         16 groups    2.01 2.42    0.51 0.60
        [1, 64, 8, 8] to 32      1.84 1.85    1.54 1.93                          4 groups    3.25 2.01    1.44 1.40
        [16, 512, 4, 4] to 256   2.41 2.38    2.35 2.49                          2 groups    3.16 2.16    2.20 1.95
    """
    wide = x.dtype in (torch.float32, torch.float64)
    if x.device.type != "cpu" or not wide or is_traced() or backends.forced() is not None:
        return False
    channels_last = not x.is_contiguous() and layout.memory_format_of(x) is torch.channels_last
    if groups > 1 and weight.shape[1] <= (16 if channels_last else 1):
        return True
    products = x.shape[0] * x.shape[2] * x.shape[3] * weight.shape[0] * weight.shape[1]  # of one tap
    return products < (1 << 18 if channels_last else 1 << 15)


def _activate_(y: Tensor, activation: str, negative_slope: float) -> Tensor:
    """The activation, in place where PyTorch can; for a fresh result that no gradient flows through."""
    if activation == "leaky_relu":
        return F.leaky_relu_(y, negative_slope)
    in_place: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": torch.relu_,
        "silu": torch.ops.aten.silu_,
        "gelu": torch.ops.aten.gelu_,
    }
    in_place |= {"tanh": torch.tanh_, "sigmoid": torch.sigmoid_}
    return in_place[activation](y)


# Arguments.


def _check_upsample(x: Any, weight: Any, bias: Any, groups: Any) -> None:
    check_image(x)
    channels = x.shape[1]
    _checks.divisor("groups", groups, f"the {channels} channels of x", channels)
    _checks.tensor("weight", weight)
    if weight.shape[1:] != (channels // groups, 3, 3) or weight.shape[0] == 0:
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}, expected [Cout, {channels // groups}, 3, 3]: a kernel of 3x3, "
            f"for the {channels} channels of x in {groups} group(s)"
        )
    outputs = weight.shape[0]
    _checks.same_kind("weight", weight, "x", x)
    _checks.divisor("groups", groups, f"the {outputs} output channels of weight", outputs)
    check_bias(bias, x, outputs)
    _checks.fits("x", x, (x.shape[0], outputs, 2 * x.shape[2], 2 * x.shape[3]))


def _pair(name: str, value: Any, minimum: int) -> tuple[int, int]:
    if type(value) is int and value >= minimum:  # as nearly always
        return value, value
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or any(isinstance(v, bool) or not isinstance(v, int) for v in pair):
        raise TypeError(f"{name}: got {value!r}, expected an integer or two")
    if min(pair) < minimum:
        raise ValueError(f"{name}: got {value!r}, expected at least {minimum}")
    return pair


#: What a transposed convolution comes to: its result's shape, the geometry and the output padding.
_Transposed = tuple[tuple[int, int, int, int], Geometry, tuple[int, int]]


def _check_transposed(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, output_padding: Any, groups: Any
) -> _Transposed:
    _checks.tensor("x", x)
    _checks.matching("weight", weight, "x", x)
    options = stride, padding, output_padding, groups
    # Sizes may be symbols while a graph is traced, and lists cannot be looked up.
    new = is_traced() or not _is_hashable(options)
    found: _Transposed = (_transposed.__wrapped__ if new else _transposed)(x.shape, weight.shape, *options)
    if bias is not None:
        check_bias(bias, x, found[0][1])
    _checks.fits("x", x, found[0])
    return found


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


# Most calls are like one before, and to look that up takes a tenth of the time.
@functools.lru_cache(maxsize=1024, typed=True)
def _transposed(
    image: torch.Size, weight: torch.Size, stride: Any, padding: Any, output_padding: Any, groups: Any
) -> _Transposed:
    """The part of the checks that has to do with sizes, and what is found by it."""
    check_image_shape(image)
    channels = image[1]
    _checks.divisor("groups", groups, f"the {channels} channels of x", channels)
    if len(weight) != 4 or weight[0] != channels or 0 in weight:
        raise ValueError(f"weight: got shape {tuple(weight)}, expected [{channels}, Cout / {groups}, kH, kW]")
    stride, padding = _pair("stride", stride, 1), _pair("padding", padding, 0)
    output_padding = _pair("output_padding", output_padding, 0)
    if output_padding[0] >= stride[0] or output_padding[1] >= stride[1]:
        raise ValueError(f"output_padding: got {output_padding}, expected less than the stride {stride}")
    (height, width), kernel = image[2:], weight[2:]
    height = (height - 1) * stride[0] - 2 * padding[0] + kernel[0] + output_padding[0]
    width = (width - 1) * stride[1] - 2 * padding[1] + kernel[1] + output_padding[1]
    if height < 1 or width < 1:
        raise ValueError(f"padding: got {padding}, which leaves a result of {height}x{width}, expected at least 1x1")
    shape = (image[0], weight[1] * groups, height, width)
    return shape, Geometry(stride, padding, (1, 1), groups), output_padding


# Dispatcher ops. Every backend implements exactly these.


def _upsample_conv2d_fake(x, weight, bias, groups):
    shape = (x.shape[0], weight.shape[0], 2 * x.shape[2], 2 * x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout.memory_format_of(x))


def _upsample_conv2d_backward_fake(grad, x, weight, groups, wanted):
    return (
        layout.empty_output(x) if wanted & 1 else x.new_empty(0),
        layout.empty_output(weight) if wanted & 2 else x.new_empty(0),
        x.new_empty(weight.shape[0] if wanted & 4 else 0),
    )


define(
    "upsample_conv",
    "upsample_conv2d(Tensor x, Tensor weight, Tensor? bias, int groups) -> Tensor",
    _upsample_conv2d_fake,
)
define(
    "upsample_conv",
    "upsample_conv2d_backward(Tensor grad, Tensor x, Tensor weight, int groups, int wanted) -> "
    "(Tensor, Tensor, Tensor)",
    _upsample_conv2d_backward_fake,
)
backends.register_public("conv_transpose2d_norm_act", "batch_norm_act")


# Autograd. The map is linear in x, in the weight and in the bias, so the gradients of its gradients are made of the map
# and its gradients again: the fast path at every order. With F(x, w, b) the op, X(g, w) and W(g, x) its gradients, and
# h, v, u what comes in for the gradients of x, w and b:
#     grad of g = F(h, w, u) + F(x, v, 0)        grad of x = X(g, v)        grad of w = W(g, h)


def _save(ctx, x, weight, bias, groups):
    ctx.save_for_backward(x, weight)
    ctx.groups = groups


def _vjp(ctx, grad):
    wanted = sum(1 << i for i, need in enumerate(ctx.needs_input_grad[:3]) if need)
    if grad is None or not wanted:
        return (None,) * 4
    x, weight = ctx.saved_tensors
    return *_gradients(grad, x, weight, ctx.groups, wanted), None


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, groups: int, wanted: int) -> list[Tensor | None]:
    found = _upsample_conv2d_backward(grad, x, weight, groups, wanted)
    return [t if wanted >> i & 1 else None for i, t in enumerate(found)]


def _save_backward(ctx, grad, x, weight, groups, wanted):
    ctx.save_for_backward(grad, x, weight)
    ctx.groups = groups


def _backward_vjp(ctx, h, v, u):
    grad, x, weight = ctx.saved_tensors
    need_grad, need_x, need_weight = ctx.needs_input_grad[:3]
    d_grad = d_x = d_weight = None
    if need_grad:
        terms = []
        if h is not None:
            terms.append(_upsample_conv2d(h, weight, u, ctx.groups))
        elif u is not None:
            terms.append(u.view(1, -1, 1, 1).expand_as(grad))
        if v is not None:
            terms.append(_upsample_conv2d(x, v, None, ctx.groups))
        d_grad = sum(terms[1:], terms[0]) if terms else None
    wanted = (need_x and v is not None) + 2 * (need_weight and h is not None)
    if wanted:
        d_x, d_weight, _ = _gradients(grad, x if h is None else h, weight if v is None else v, ctx.groups, wanted)
    return d_grad, d_x, d_weight, None, None


_upsample_conv2d = differentiate("upsample_conv2d", _save, _vjp)
_upsample_conv2d_backward = differentiate("upsample_conv2d_backward", _save_backward, _backward_vjp)


def _why_plain(x: Tensor, weight: Tensor, *args: object, groups: int = 1, **kwargs: object) -> str:
    """For `genmod.explain`."""
    small = _stock_is_faster(x, weight, groups)
    return "stock PyTorch is faster at so little work, or at groups of so few channels" if small else ""


backends.register_public("upsample_conv2d", "upsample_conv2d", _why_plain)
