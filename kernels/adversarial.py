"""Adversarial losses and LeCam regularisation on a GPU: loss and derivatives of both sides, in one launch.

The functions have the names, arguments and results of the dispatcher's ops; for the maths see
genmod/reference/adversarial.py. Logits are few, so launches are what they cost: every program takes the same block of
both sides, and what fits one block needs no second launch to sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genmod import layout
from genmod.kernels.elementary import exp_parts, log_positive
from genmod.kernels.launch import launch
from genmod.kernels.rows import load, store

_BLOCK = 1024


@triton.jit(do_not_specialize=["real_numel", "fake_numel"])
def _adversarial(
    loss, partials, d_real, d_fake, real, fake, real_center, fake_center, grad, real_numel, fake_numel,
    real_scale: tl.float64, fake_scale: tl.float64,
    REAL_SIGN: tl.constexpr, REAL_SHIFT: tl.constexpr, REAL_WEIGHT: tl.constexpr,
    FAKE_SIGN: tl.constexpr, FAKE_SHIFT: tl.constexpr, FAKE_WEIGHT: tl.constexpr,
    CURVE: tl.constexpr, PAIRED: tl.constexpr, EACH: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of either side: its values (`loss`) or their scaled sum (`partials`), and its derivatives."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    index = program * BLOCK + tl.arange(0, BLOCK)
    in_fake = index < fake_numel
    f = load(fake, index, in_fake)
    if PAIRED:
        t = (load(real, index, in_fake) - f) * REAL_SIGN + REAL_SHIFT
        value, slope = _at(t, CURVE)
        value = value * REAL_WEIGHT
        d = _times_grad(slope * (REAL_SIGN * REAL_WEIGHT), real_scale, grad, index, in_fake, EACH)
        if d_real is not None:
            store(d_real, index, d, in_fake)
        if d_fake is not None:
            store(d_fake, index, -d, in_fake)
        total = tl.sum(tl.where(in_fake, value, 0.0), axis=0) * real_scale
    else:
        value, slope = _at(_argument(f, fake_center, FAKE_SIGN, FAKE_SHIFT), CURVE)
        value = value * FAKE_WEIGHT
        if d_fake is not None:
            d = _times_grad(slope * (FAKE_SIGN * FAKE_WEIGHT), fake_scale, grad, index, in_fake, EACH)
            store(d_fake, index, d, in_fake)
        total = tl.sum(tl.where(in_fake, value, 0.0), axis=0) * fake_scale
        if real is not None:
            in_real = index < real_numel
            r = load(real, index, in_real)
            first, slope = _at(_argument(r, real_center, REAL_SIGN, REAL_SHIFT), CURVE)
            first = first * REAL_WEIGHT
            if d_real is not None:
                d = _times_grad(slope * (REAL_SIGN * REAL_WEIGHT), real_scale, grad, index, in_real, EACH)
                store(d_real, index, d, in_real)
            total += tl.sum(tl.where(in_real, first, 0.0), axis=0) * real_scale
            value += first
    if loss is not None:
        store(loss, index, value, in_fake)
    if partials is not None:
        tl.store(partials + program, total)


@triton.jit
def _argument(x, center, SIGN: tl.constexpr, SHIFT: tl.constexpr):
    t = x * SIGN + SHIFT
    if center is not None:
        t -= tl.load(center)
    return t


@triton.jit
def _at(t, CURVE: tl.constexpr):
    """The curve's value and slope. Comparisons, never maximum: that would lose a NaN."""
    if CURVE == "softplus":
        e, _, _ = exp_parts(-tl.abs(t))
        u = 1.0 + e
        inverse = 1.0 / u
        # With u rounded, ln u + (e - (u - 1)) / u is log1p(e) to the last bits.
        value = tl.where(t > 0.0, t, 0.0) + (log_positive(u) + (e - (u - 1.0)) * inverse)
        value = tl.where(t == t, value, t)
        slope = tl.where(t > 0.0, 1.0, e) * inverse
    elif CURVE == "relu":
        value = tl.where(t <= 0.0, 0.0, t)
        slope = tl.where(t <= 0.0, 0.0, 1.0).to(t.dtype)
    elif CURVE == "square":
        value = t * t
        slope = 2.0 * t
    else:
        value = t
        slope = tl.full(t.shape, 1.0, t.dtype)
    return value, slope


@triton.jit
def _times_grad(d, scale, grad, index, inside, EACH: tl.constexpr):
    d = d * tl.full([1], scale, d.dtype)
    if grad is not None:
        if EACH:
            d = d * load(grad, index, inside)
        else:
            d = d * tl.load(grad)
    return d


# --- Launchers.


def _run(
    real: Tensor | None,
    fake: Tensor,
    real_center: Tensor | None,
    fake_center: Tensor | None,
    curve: str,
    terms: list[float],
    paired: bool,
    reduction: str,
    *,
    want_loss: bool = True,
    grad: Tensor | None = None,
    derivatives: tuple[Tensor, Tensor] | None = None,
    wanted: int = 0,
) -> Tensor:
    """Launch the kernel for the loss, and for the derivatives wanted; without `want_loss` the result is empty."""
    each = reduction == "none"
    real_form, fake_form = layout.formats_of_pair(real, fake)
    if grad is not None and each:
        grad = grad.contiguous(memory_format=fake_form)
    dtype = torch.float64 if fake.dtype == torch.float64 else torch.float32
    sizes = (0 if real is None else real.numel(), fake.numel())
    block = min(_BLOCK, max(128, triton.next_power_of_2(max(sizes))))
    programs = triton.cdiv(max(sizes), block)
    loss = layout.empty_output(fake if real is None else real, dtype) if each and want_loss else None
    partials = None if each or not want_loss else fake.new_empty(programs, dtype=dtype)
    scales = [1.0 / max(size, 1) if reduction == "mean" else 1.0 for size in sizes]
    arguments: dict[str, Any] = {
        "loss": loss,
        "partials": partials,
        "d_real": derivatives[0] if derivatives and real is not None and wanted & 1 else None,
        "d_fake": derivatives[1] if derivatives and wanted & 2 else None,
        "real": None if real is None else real.contiguous(memory_format=real_form),
        "fake": fake.contiguous(memory_format=fake_form),
        "real_center": real_center,
        "fake_center": fake_center,
        "grad": grad,
        "real_numel": sizes[0],
        "fake_numel": sizes[1],
        "real_scale": scales[0],
        "fake_scale": scales[1],
        **dict(zip(("REAL_SIGN", "REAL_SHIFT", "REAL_WEIGHT", "FAKE_SIGN", "FAKE_SHIFT", "FAKE_WEIGHT"), terms)),
        "CURVE": curve,
        "PAIRED": paired,
        "EACH": each,
        "WIDE": programs * block >= 2**31,
        "BLOCK": block,
    }
    launch(_adversarial, programs, max(1, block // 256), fake, arguments)
    if partials is not None:
        # torch sums a dense row in a fixed order.
        return partials.view(()) if programs == 1 else partials.sum()
    return fake.new_empty(0) if loss is None else loss


def adversarial(
    real: Tensor | None,
    fake: Tensor,
    real_center: Tensor | None,
    fake_center: Tensor | None,
    curve: str,
    terms: list[float],
    paired: bool,
    reduction: str,
) -> Tensor:
    return _run(real, fake, real_center, fake_center, curve, terms, paired, reduction)


def adversarial_with_gradients(
    real: Tensor | None,
    fake: Tensor,
    real_center: Tensor | None,
    fake_center: Tensor | None,
    curve: str,
    terms: list[float],
    paired: bool,
    reduction: str,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor]:
    made = layout.empty_pair(real, fake, torch.float64 if fake.dtype == torch.float64 else torch.float32, wanted)
    inputs = (real, fake, real_center, fake_center, curve, terms, paired, reduction)
    return _run(*inputs, derivatives=made, wanted=wanted), *made


def adversarial_backward(
    grad: Tensor,
    real: Tensor | None,
    fake: Tensor,
    real_center: Tensor | None,
    fake_center: Tensor | None,
    curve: str,
    terms: list[float],
    paired: bool,
    reduction: str,
    wanted: int,
) -> tuple[Tensor, Tensor]:
    made = layout.empty_pair(real, fake, fake.dtype, wanted)
    inputs = (real, fake, real_center, fake_center, curve, terms, paired, reduction)
    _run(*inputs, want_loss=False, grad=grad, derivatives=made, wanted=wanted)
    return made


# --- What to compile ahead of time (see genmod/testing/compile_only.py).


def _case(
    op: Callable[..., Any],
    dtype: torch.dtype,
    curve: str,
    terms: list[float],
    *,
    shape: tuple[int, ...] = (64, 1, 30, 30),
    one_sided: bool = False,
    paired: bool = False,
    centered: bool = False,
    reduction: str = "mean",
) -> Callable[[], None]:
    """A call of `op` on meta tensors."""

    def make(*sizes: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(sizes, dtype=of, device="meta")

    def call() -> None:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        real, fake = None if one_sided else make(*shape), make(*shape)
        centers = (make(of=wide), make(of=wide)) if centered else (None, None)
        inputs = (real, fake, *centers, curve, terms, paired, reduction)
        if op is adversarial:
            op(*inputs)
        elif op is adversarial_with_gradients:
            op(*inputs, 3)
        else:
            op(make(*shape, of=wide) if reduction == "none" else make(of=wide), *inputs, 3)

    return call


_SATURATING, _PAIR = [-1.0, 0.0, 1.0, 1.0, 0.0, 1.0], [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
_HINGE, _SQUARES, _ALONE = (
    [-1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    [1.0, 0.0, 1.0, 1.0, 0.0, 1.0],
    [0.0, 0.0, 0.0, 1.0, 0.0, -1.0],
)

#: Between them they reach every branch of the kernel.
COMPILE_CASES = {
    "adversarial, float32, softplus": _case(adversarial, torch.float32, "softplus", _SATURATING),
    "adversarial, bfloat16, linear, one side": _case(adversarial, torch.bfloat16, "linear", _ALONE, one_sided=True),
    "adversarial, float32, relu, 2^32 elements": _case(adversarial, torch.float32, "relu", _HINGE, shape=(2**23, 512)),
    "adversarial_with_gradients, float32, softplus, one block": _case(
        adversarial_with_gradients, torch.float32, "softplus", _SATURATING, shape=(64,)
    ),
    "adversarial_with_gradients, float32, softplus, paired": _case(
        adversarial_with_gradients, torch.float32, "softplus", _PAIR, paired=True
    ),
    "adversarial_with_gradients, float16, relu, per element": _case(
        adversarial_with_gradients, torch.float16, "relu", _HINGE, reduction="none"
    ),
    "adversarial_with_gradients, float32, square, centered": _case(
        adversarial_with_gradients, torch.float32, "square", _SQUARES, centered=True
    ),
    "adversarial_backward, float64, softplus": _case(adversarial_backward, torch.float64, "softplus", _SATURATING),
    "adversarial_backward, bfloat16, softplus, paired, per element": _case(
        adversarial_backward, torch.bfloat16, "softplus", _PAIR, paired=True, reduction="none"
    ),
}
