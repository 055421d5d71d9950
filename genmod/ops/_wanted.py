"""Which gradients a backward op is asked for, which of its results they are, and what arrives at them in turn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor


def wanted_bits(needs: Iterable[bool]) -> int:
    """Bit i says that gradient i is wanted."""
    return sum(1 << i for i, need in enumerate(needs) if need)


def only_wanted(wanted: int, grads: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients that were; a backward op returns an empty tensor in place of each other one."""
    return [g if wanted >> i & 1 else None for i, g in enumerate(grads)]


def arrived(arriving: Sequence[Tensor | None], of: Sequence[Tensor | None]) -> list[Tensor | None]:
    """What arrives at the gradients of the tensors `of`. At one that was not wanted, and so is an empty tensor, another
    empty tensor may arrive: that is None."""
    return [
        a if a is not None and t is not None and a.shape == t.shape else None for a, t in zip(arriving, of, strict=True)
    ]
