"""Leaky ReLU by its mask on a GPU.

The maths is in genmod/reference/critic.py, how elements are found in kernels/rows.py.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genmod import layout
from genmod.kernels.launch import launch
from genmod.kernels.rows import SIZES, elements, load, place, plan, store


@triton.jit(do_not_specialize=[*SIZES, "x_gap", "y_gap", "mask_gap"])
def _leaky_relu(
    y, y_gap, mask, mask_gap, x, x_gap, length, chunks, cols, slope: tl.float64,
    APPLY: tl.constexpr,
    PARTS: tl.constexpr, SHORT: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = x or slope * x, by the mask given (APPLY) or by the sign, which is then written down as the mask."""
    segment, begin, end, start = place(length, chunks, UNIT, WIDE, BLOCK)
    index, inside, row = elements(segment, begin, end, start, cols, 0, PARTS, SHORT, UNIT, BLOCK)
    value = load(x, index + row * x_gap, inside)
    if APPLY:
        positive = tl.load(mask + index + row * mask_gap, mask=inside, other=0) != 0
    else:
        positive = value > 0.0
        store(mask, index + row * mask_gap, tl.where(positive, 1, 0), inside)
    store(y, index + row * y_gap, tl.where(positive, value, value * tl.full([1], slope, value.dtype)), inside)


def _run(y: Tensor, mask: Tensor, x: Tensor, slope: float, apply: bool) -> None:
    # A bool is a byte; as such its pointer takes the loads and stores of any other number.
    cut = plan(y, False, 1, 2, y=y, mask=mask.view(torch.uint8), x=x)
    launch(_leaky_relu, cut.programs, cut.num_warps, y, {**cut.arguments, "slope": float(slope), "APPLY": apply})


def leaky_relu_mask(x: Tensor, negative_slope: float) -> tuple[Tensor, Tensor]:
    y, mask = layout.empty_output(x), layout.empty_output(x, torch.bool)
    _run(y, mask, x, negative_slope, False)
    return y, mask


def leaky_relu_apply(x: Tensor, mask: Tensor, negative_slope: float) -> Tensor:
    y = layout.empty_output(mask, x.dtype)
    _run(y, mask, x, negative_slope, True)
    return y


def _case(apply: bool, dtype: torch.dtype, *shape: int, form: torch.memory_format = torch.contiguous_format) -> Any:
    def call() -> None:
        x = torch.empty(shape, dtype=dtype, device="meta", memory_format=form)
        if apply:
            leaky_relu_apply(x, torch.empty_like(x, dtype=torch.bool), 0.2)
        else:
            leaky_relu_mask(x, 0.2)

    return call


#: Calls that are compiled ahead of time (see genmod/testing/compile_only.py).
COMPILE_CASES = {
    "leaky_relu_mask, float32": _case(False, torch.float32, 32, 64, 32, 32),
    "leaky_relu_mask, bfloat16, channels_last": _case(False, torch.bfloat16, 32, 64, 32, 32, form=torch.channels_last),
    "leaky_relu_mask, float64": _case(False, torch.float64, 4096, 512),
    "leaky_relu_mask, float32, 2^32 elements": _case(False, torch.float32, 2**23, 512),
    "leaky_relu_apply, float32": _case(True, torch.float32, 32, 64, 32, 32),
    "leaky_relu_apply, bfloat16": _case(True, torch.bfloat16, 32, 64, 32, 32),
    "leaky_relu_apply, float16, odd": _case(True, torch.float16, 33, 77),
    "leaky_relu_apply, float64": _case(True, torch.float64, 4096, 512),
}
