"""Ways to malform an argument of a dispatcher op: everything that a caller, or a bug above, could hand over."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64)
INTEGERS = (0, 1, -1, 2, 3, 7, 255, 1 << 31, 1 << 40, (1 << 62) + 1, (1 << 63) - 1, -(1 << 63))
NUMBERS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e308, -1e308, float("inf"), float("-inf"), float("nan"))
WORDS = ("", "none", "batch", "batchmean", "mean", "sum", "hard", "soft", "rbf", "imq", "mss", "mws", "relu", "gelu",
         "square", "linear", "laplace", "bernoulli", "per_dim", "NONE", "sum ", "\0", "é", "x" * 5000)  # fmt: skip
HUGE = 1 << 40


def filled(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Numbers for a new shape; reproducible from `rng`."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def another_shape(rng: random.Random, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A dimension fewer, more, longer, shorter or empty."""
    sizes, kind = list(shape), rng.randrange(4)
    if kind == 0 and sizes:
        sizes.pop(rng.randrange(len(sizes)))
    elif kind == 1:
        sizes.insert(rng.randint(0, len(sizes)), rng.choice((0, 1, 2, 3)))
    elif sizes:
        i = rng.randrange(len(sizes))
        sizes[i] = rng.choice((0, 1, sizes[i] - 1, sizes[i] + 1, 2 * sizes[i], 65, 130)) if sizes[i] else 1
    return tuple(max(s, 0) for s in sizes)


def reshaped(rng: random.Random, t: Tensor) -> Tensor:
    """Numbers of another shape."""
    return filled(rng, another_shape(rng, tuple(t.shape)), t.dtype)


def retyped(rng: random.Random, t: Tensor) -> Tensor:
    """The same numbers in another dtype."""
    return t.to(rng.choice(DTYPES))


def huge(rng: random.Random, t: Tensor) -> Tensor:
    """One number, expanded to more elements than any memory holds."""
    if not t.dim() or not t.numel():
        return t
    sizes = list(t.shape)
    sizes[rng.randrange(len(sizes))] = HUGE
    return t.flatten()[0].expand(sizes)


def overlapping(rng: random.Random, t: Tensor) -> Tensor:
    """The same shape over memory that its elements share: strides of zero and one."""
    if not t.dim():
        return t
    strides = [rng.randrange(2) for _ in t.shape]
    room = 1 + sum(max(s - 1, 0) * k for s, k in zip(t.shape, strides))
    return filled(rng, (room,), t.dtype).as_strided(t.shape, strides)


def permuted(rng: random.Random, t: Tensor) -> Tensor:
    """The same values, with dimensions in another order in memory."""
    order = list(range(t.dim()))
    rng.shuffle(order)
    back = [order.index(i) for i in range(t.dim())]
    return t.permute(order).contiguous().permute(back)


def at_the_end(rng: random.Random, t: Tensor) -> Tensor:
    """The same values in the last bytes of their storage, so that one read too far is one read outside."""
    if 0 in t.shape:
        return t
    before = rng.choice((1, 3, 17))
    room = torch.empty(before + t.numel(), dtype=t.dtype)
    room[before:] = t.flatten()
    return room[before:].view(t.shape)


def strided(rng: random.Random, t: Tensor) -> Tensor:
    """The same values with gaps between them, ending where the storage does."""
    if not t.dim() or 0 in t.shape:
        return t
    gaps = [rng.choice((0, 0, 1, 2)) for _ in t.shape]
    room = torch.zeros([(s - 1) * (1 + g) + 1 for s, g in zip(t.shape, gaps)], dtype=t.dtype)
    view = room[tuple(slice(None, None, 1 + g) for g in gaps)]
    view.copy_(t)
    return view


def wild_strides(rng: random.Random, t: Tensor) -> Tensor:
    """Strides of 2^62 where they do not matter: in dimensions of size one, and anywhere in an empty tensor."""
    wild = 0 in t.shape
    strides = [(1 << 62) + rng.randrange(3) if wild or s == 1 else k for s, k in zip(t.shape, t.stride())]
    return t.as_strided(t.shape, strides)


def elsewhere(rng: random.Random, t: Tensor) -> Tensor:
    """A tensor without memory."""
    return t.to("meta")


def negated(rng: random.Random, t: Tensor) -> Tensor:
    """A view that torch negates lazily."""
    if t.dtype not in (torch.float32, torch.float64):
        return t
    return torch.complex(t, -t).conj().imag


def lazy_zero(rng: random.Random, t: Tensor) -> Tensor:
    """Zeros without memory, as autograd makes them."""
    return torch._efficientzerotensor(t.shape, dtype=t.dtype)


def sparse(rng: random.Random, t: Tensor) -> Tensor:
    """Another layout."""
    return t.to_sparse() if t.dim() and t.is_contiguous() and t.is_floating_point() else t


def special(rng: random.Random, t: Tensor) -> Tensor:
    """NaN, infinities, huge and tiny numbers among the others."""
    if not t.is_floating_point() or not t.numel():
        return t
    out = t.clone().flatten()
    for _ in range(3):
        out[rng.randrange(len(out))] = rng.choice((float("nan"), float("inf"), -float("inf"), 1e30, 1e-40, 0.0))
    return out.view(t.shape)


TENSORS: tuple[Callable[[random.Random, Tensor], Tensor], ...] = (
    reshaped, reshaped, reshaped, retyped, huge, overlapping, permuted, at_the_end, strided, wild_strides, elsewhere,
    negated, lazy_zero, sparse, special,
)  # fmt: skip


def together(rng: random.Random, args: list[Any], which: int) -> None:
    """The same change to every tensor of one shape, which gets past checks that these agree."""
    chosen = args[which]
    alike = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.shape == chosen.shape]
    kind = rng.randrange(3)
    shape, dtype = another_shape(rng, tuple(chosen.shape)), rng.choice(DTYPES)
    for i in alike:
        if kind == 0:
            args[i] = filled(rng, shape, args[i].dtype)
        elif kind == 1 and args[i].is_floating_point():
            args[i] = args[i].to(dtype)
        elif kind == 2:
            form = {4: torch.channels_last, 5: torch.channels_last_3d}.get(args[i].dim(), torch.contiguous_format)
            args[i] = args[i].contiguous(memory_format=form)


def _malform_tensor(rng: random.Random, args: list[Any], which: int, *, alone: bool) -> None:
    if alone:
        args[which] = rng.choice(TENSORS)(rng, args[which])
    else:
        together(rng, args, which)


def argument(rng: random.Random, args: list[Any], which: int) -> None:
    """Malform one argument in place."""
    value = args[which]
    if isinstance(value, Tensor) and value.numel() >= HUGE:
        return  # enough
    if isinstance(value, Tensor):
        kind = rng.randrange(10)
        if kind == 0:
            args[which] = None
        else:
            # Of what is malformed already, torch refuses some.
            with contextlib.suppress(RuntimeError, TypeError):
                _malform_tensor(rng, args, which, alone=kind > 3)
    elif isinstance(value, bool):
        args[which] = not value
    elif isinstance(value, int):
        args[which] = rng.choice(INTEGERS)
    elif isinstance(value, float):
        args[which] = rng.choice(NUMBERS)
    elif isinstance(value, str):
        args[which] = rng.choice(WORDS)
    elif isinstance(value, (list, tuple)):
        args[which] = rng.choice(([], [0.0], [float("nan")] * 6, [1.0] * 7, [*value, 1.0], list(value)[:-1]))
    else:
        given = [a for a in args if isinstance(a, Tensor)]
        args[which] = rng.choice([*given, torch.tensor(3), filled(rng, (), torch.float32)])
