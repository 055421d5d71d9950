"""Random tensors: hypothesis decides, and so shrinks, their form; their numbers come from a seed that it draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor

T = TypeVar("T")

#: How the numbers of a tensor are distributed; mostly as in a model.
VALUES = ("normal",) * 6 + ("small", "tiny", "large", "mixed", "grid", "special", "zero")
LAYOUTS = ("contiguous", "channels_last", "slice", "gaps", "permuted", "expanded", "negated")
#: Of "large" numbers, by dtype: squared and summed they stay in range, or leave it where the reference's do too.
_LARGE = {torch.float16: 1e2, torch.bfloat16: 1e6, torch.float32: 1e6, torch.float64: 1e30}
#: Of "tiny" ones: some of them subnormal, some zero.
_TINY = {torch.float16: 1e-6, torch.bfloat16: 1e-38, torch.float32: 1e-38, torch.float64: 1e-308}


class Draw:
    """What one random case is made from: hypothesis' data, and the dtype of its tensors."""

    def __init__(self, data: st.DataObject) -> None:
        self._draw = data.draw
        self.dtype: torch.dtype = self.one(torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
        self.values: str = self.one(*VALUES)
        self.generator = torch.Generator().manual_seed(self.integer(0, (1 << 32) - 1))

    @property
    def half(self) -> bool:
        """Whether the dtype is one of half precision."""
        return self.dtype in (torch.bfloat16, torch.float16)

    def one(self, *choices: T) -> T:
        """One of them; the first is the simplest."""
        return self._draw(st.sampled_from(choices))

    def integer(self, low: int, high: int) -> int:
        """Both ends included."""
        return self._draw(st.integers(low, high))

    def maybe(self, value: T) -> T | None:
        """None, half of the time."""
        return self.one(None, value)

    def number(self, low: float, high: float) -> float:
        """Between two numbers, both included."""
        return self._draw(st.floats(low, high, allow_nan=False, width=32))

    def shape(self, least: int = 1, most: int = 5, *, empty: bool = True, elements: int = 400) -> tuple[int, ...]:
        """Of a rank in a range; now and then with an empty dimension, or one longer than a chunk of the kernels."""
        sizes = [self.integer(1, 6) for _ in range(self.integer(least, most))]
        special = self.integer(0, 19)
        where = self.integer(0, len(sizes) - 1)
        if special == 1 and empty:
            sizes[where] = 0
        elif special == 2:
            sizes[where] = self.one(17, 64, 257, 1025, 2051)
        while math.prod(sizes) > (elements if special != 2 else 6000):
            small = [i for i, s in enumerate(sizes) if s > 1 and i != where] or [where]
            sizes[small[0]] = max(sizes[small[0]] // 2, 1)
        return tuple(sizes)

    def numbers(self, shape: Sequence[int], kind: str, dtype: torch.dtype) -> Tensor:
        """Dense numbers of one of VALUES."""
        x = torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64)
        if kind == "small":
            x = 1e-3 * x
        elif kind == "tiny":
            x = _TINY[dtype] * x
        elif kind == "large":
            x = _LARGE[dtype] * x
        elif kind == "mixed":
            x = x * 10 ** (3 * torch.randn(x.shape, generator=self.generator, dtype=torch.float64)).clamp(-6, 3)
        elif kind == "grid":
            x = (2 * x).round() / 2
        elif kind == "zero":
            x = 0 * x
        x = x.to(dtype)
        if kind == "special" and x.numel():
            flat = x.view(-1)
            for value in (math.nan, math.inf, -math.inf, 0.0, -0.0, torch.finfo(dtype).tiny):
                if self.integer(0, 2) == 0:
                    flat[self.integer(0, len(flat) - 1)] = value
        return x

    def tensor(
        self,
        *shape: int,
        scale: float = 1.0,
        shift: float = 0.0,
        values: str | None = None,
        dtype: torch.dtype | None = None,
        layout: str | None = None,
    ) -> Tensor:
        """Numbers times `scale` plus `shift`, in some layout."""
        x = self.numbers(shape, values or self.values, dtype or self.dtype)
        if (scale, shift) != (1.0, 0.0):
            x = (scale * x.double() + shift).to(x.dtype)
        return lay_out(self, x, layout or self.one(*LAYOUTS))


def lay_out(draw: Draw, x: Tensor, layout: str) -> Tensor:
    """The numbers of `x` (but of "expanded", a part of them) in another place in memory."""
    if layout == "channels_last" and x.dim() in (4, 5):
        form = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        return x.contiguous(memory_format=form)
    if layout == "slice":
        room = torch.full([s + draw.integer(0, 2) for s in x.shape], 7.0).to(x.dtype)
        where = tuple(slice(r - s, r) for r, s in zip(room.shape, x.shape))
        room[where] = x
        return room[where]
    if layout == "gaps" and x.dim():
        dim = draw.integer(0, x.dim() - 1)
        return torch.stack((x, x.flip(dim)), dim + 1).select(dim + 1, 0)
    if layout == "permuted":
        order = torch.randperm(x.dim(), generator=draw.generator).tolist()
        return x.permute(order).contiguous().permute([order.index(i) for i in range(x.dim())])
    if layout == "expanded" and x.dim() and 0 not in x.shape:
        dim = draw.integer(0, x.dim() - 1)
        return x.narrow(dim, 0, 1).expand(x.shape)
    if layout == "negated" and x.dtype in (torch.float32, torch.float64):
        return torch.complex(x, -x).conj().imag
    return x


def text(value: Any) -> str:
    """An argument in a few words."""
    if not isinstance(value, Tensor):
        return repr(value)
    dtype = str(value.dtype).removeprefix("torch.")
    strides = "" if value.is_contiguous() else f" strides {list(value.stride())}"
    numbers = f" {value.tolist()}" if value.numel() <= 12 else ""
    return f"{dtype}{list(value.shape)}{strides}{numbers}"
