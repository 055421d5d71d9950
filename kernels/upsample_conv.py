"""Upsampling convolutions on a GPU: the weight folded by a kernel, the convolution cuDNN's.

The functions have the names, arguments and results of the dispatcher's ops. For the maths, that of the folded form, see
genmod/reference/upsample_conv.py. Folding reads and writes a few megabytes at most, so it is done anew at each call.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from genmod import layout
from genmod.kernels.launch import launch
from genmod.reference import upsample_conv as reference
from genmod.reference.precision import without_autocast
from genmod.reference.upsample_conv import PADDING, STRIDE

_BLOCK = 128  # pairs of channels in a program; a lane has all taps of one
_FEW_CHANNELS = 16
_SIZES = ["pairs", "inputs", "outputs", "w_out", "w_in", "w_tap", "f_in", "f_out", "f_tap"]


@triton.jit
def _place(pairs, inputs, outputs, w_out, w_in, f_in, f_out, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Where the taps of this program's pairs begin in the weight and in the folded weight, and which pairs exist.

    `inputs` and `outputs` are the channels of one group.
    """
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    index = program * BLOCK + tl.arange(0, BLOCK)
    out, in_group = index // inputs, index % inputs
    of_weight = out * w_out + in_group * w_in
    of_folded = (out // outputs * inputs + in_group) * f_in + out % outputs * f_out
    return of_weight, of_folded, index < pairs


@triton.jit
def _load(pointer, offset, inside):
    value = tl.load(pointer + offset, mask=inside, other=0.0)
    if pointer.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)
    return value


@triton.jit
def _store(pointer, offset, value, inside):
    tl.store(pointer + offset, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _column(weight, w, w_tap, inside, j: tl.constexpr):
    """Column j of a folded row: the sum of columns 2; 1 and 2; 0 and 1; 0."""
    if j == 0:
        return _load(weight, w + 2 * w_tap, inside)
    elif j == 3:
        return _load(weight, w, inside)
    else:
        return _load(weight, w + (2 - j) * w_tap, inside) + _load(weight, w + (3 - j) * w_tap, inside)


@triton.jit(do_not_specialize=_SIZES)
def _fold(
    folded, weight, pairs, inputs, outputs, w_out, w_in, w_tap, f_in, f_out, f_tap,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row of three taps becomes one of four, and so do three such rows."""
    w, f, inside = _place(pairs, inputs, outputs, w_out, w_in, f_in, f_out, WIDE, BLOCK)
    for j in tl.static_range(4):
        w0 = _column(weight, w, w_tap, inside, j)
        w1 = _column(weight, w + 3 * w_tap, w_tap, inside, j)
        w2 = _column(weight, w + 6 * w_tap, w_tap, inside, j)
        _store(folded, f + j * f_tap, w2, inside)
        _store(folded, f + (4 + j) * f_tap, w1 + w2, inside)
        _store(folded, f + (8 + j) * f_tap, w0 + w1, inside)
        _store(folded, f + (12 + j) * f_tap, w0, inside)


@triton.jit(do_not_specialize=_SIZES)
def _unfold(
    weight, folded, pairs, inputs, outputs, w_out, w_in, w_tap, f_in, f_out, f_tap,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The transpose: each tap gathers from the four that it was added to."""
    w, f, inside = _place(pairs, inputs, outputs, w_out, w_in, f_in, f_out, WIDE, BLOCK)
    for b in tl.static_range(3):
        # Column b was added to columns 2 - b and 3 - b.
        p = f + (2 - b) * f_tap
        f0 = _load(folded, p, inside) + _load(folded, p + f_tap, inside)
        f1 = _load(folded, p + 4 * f_tap, inside) + _load(folded, p + 5 * f_tap, inside)
        f2 = _load(folded, p + 8 * f_tap, inside) + _load(folded, p + 9 * f_tap, inside)
        f3 = _load(folded, p + 12 * f_tap, inside) + _load(folded, p + 13 * f_tap, inside)
        _store(weight, w + b * w_tap, f2 + f3, inside)
        _store(weight, w + (3 + b) * w_tap, f1 + f2, inside)
        _store(weight, w + (6 + b) * w_tap, f0 + f1, inside)


def _arguments(weight: Tensor, folded: Tensor, groups: int) -> dict[str, Any]:
    """What both kernels are told; the 3x3 and the 4x4 taps are each `tap` apart in either memory format."""
    outputs, inputs = weight.shape[:2]
    pairs = outputs * inputs
    sizes = (
        pairs,
        inputs,
        outputs // groups,
        *weight.stride()[:2],
        weight.stride(3),
        *folded.stride()[:2],
        folded.stride(3),
    )
    wide = max(16 * pairs, pairs + _BLOCK) >= 2**31
    return {"weight": weight, "folded": folded, **dict(zip(_SIZES, sizes, strict=True)), "WIDE": wide, "BLOCK": _BLOCK}


def _launch(kernel: Any, weight: Tensor, folded: Tensor, groups: int) -> None:
    programs = -(-weight.shape[0] * weight.shape[1] // _BLOCK)
    launch(kernel, programs, 4, weight, _arguments(weight, folded, groups))


def _empty_folded(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    outputs, inputs = weight.shape[:2]
    shape = (inputs * groups, outputs // groups, 4, 4)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout.memory_format_of(x))


def _folded(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """The weight of the transposed convolution, in the memory format that suits `x`."""
    weight = weight.contiguous(memory_format=layout.memory_format_of(weight))
    folded = _empty_folded(x, weight, groups)
    _launch(_fold, weight, folded, groups)
    return folded


def _too_few_to_fold(x: Tensor, channels: int) -> bool:
    """Whether so few channels are summed that the rounding of folded weights to half precision would show: it is up to
    three times that of the result, where many do not average it out. The reference computes in float32."""
    return x.dtype in (torch.bfloat16, torch.float16) and channels < _FEW_CHANNELS


def upsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """See genmod.reference.upsample_conv."""
    if _too_few_to_fold(x, weight.shape[1]):
        return reference.upsample_conv2d(x, weight, bias, groups)
    form = layout.memory_format_of(x)
    with without_autocast(x):
        y = F.conv_transpose2d(x, _folded(x, weight, groups), bias, STRIDE, PADDING, groups=groups)
    return y.contiguous(memory_format=form)


def upsample_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, groups: int, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See genmod.reference.upsample_conv."""
    if _too_few_to_fold(x, weight.shape[0] // groups):
        return reference.upsample_conv2d_backward(grad, x, weight, groups, wanted)
    with without_autocast(x):
        # Only the shape of the weight matters where no gradient of x is wanted.
        folded = _folded(x, weight, groups) if wanted & 1 else _empty_folded(x, weight, groups)
        dx, d_folded, d_bias = torch.ops.aten.convolution_backward(
            grad, x, folded, [weight.shape[0]], STRIDE, PADDING, [1, 1],
            True, [0, 0], groups, [bool(wanted & 1), bool(wanted & 2), bool(wanted & 4)],
        )  # fmt: skip
    d_weight = layout.empty_output(weight) if wanted & 2 else x.new_empty(0)
    if wanted & 2:
        if not d_folded.is_contiguous(memory_format=layout.memory_format_of(d_folded)):
            d_folded = d_folded.contiguous()
        _launch(_unfold, d_weight, d_folded, groups)
    return (
        dx.contiguous(memory_format=layout.memory_format_of(x)) if wanted & 1 else x.new_empty(0),
        d_weight,
        d_bias if wanted & 4 else x.new_empty(0),
    )


# --- What to compile ahead of time (see genmod/testing/compile_only.py).


def _case(op: Any, dtype: torch.dtype, form: torch.memory_format = torch.contiguous_format, groups: int = 1) -> Any:
    def make(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta", memory_format=form)

    def call() -> None:
        x, weight = make(2, 128, 8, 8), make(256, 128 // groups, 3, 3)
        if op is upsample_conv2d:
            op(x, weight, None, groups)
        else:
            op(make(2, 256, 16, 16), x, weight, groups, 7)

    return call


COMPILE_CASES = {
    "upsample_conv2d, float32": _case(upsample_conv2d, torch.float32),
    "upsample_conv2d, bfloat16, channels_last": _case(upsample_conv2d, torch.bfloat16, torch.channels_last),
    "upsample_conv2d, float16, groups": _case(upsample_conv2d, torch.float16, groups=4),
    "upsample_conv2d, float64": _case(upsample_conv2d, torch.float64),
    "upsample_conv2d_backward, float32": _case(upsample_conv2d_backward, torch.float32),
    "upsample_conv2d_backward, bfloat16, channels_last": _case(
        upsample_conv2d_backward, torch.bfloat16, torch.channels_last
    ),
    "upsample_conv2d_backward, float64, groups": _case(upsample_conv2d_backward, torch.float64, groups=2),
}
