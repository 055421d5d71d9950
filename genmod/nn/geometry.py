"""Which geometry a convolution that is made for one of them takes."""

from __future__ import annotations

from typing import Any

#: What may be given for each argument, in every way of writing it.
Covered = dict[str, tuple[Any, ...]]


def check_geometry(covered: Covered, words: str, others: str, **given: Any) -> None:
    """That each argument is one of what is covered, which `words` describe; `others` says what to take otherwise."""
    for name, got in given.items():
        if got not in covered[name]:
            raise ValueError(f"{name}: got {got!r}, expected {covered[name][0]!r}: covered is {words}; {others}")


def both(size: int) -> tuple[Any, ...]:
    """A number for both dimensions."""
    return (size, (size, size), [size, size])


COVERED_3X3: Covered = {
    "kernel_size": both(3),
    "stride": both(1),
    "padding": (*both(1), "same"),
    "dilation": both(1),
    "groups": (1,),
    "padding_mode": ("zeros",),
}
WORDS_3X3 = "a 3x3 kernel with stride 1, padding 1, dilation 1 and zeros around"
COVERED_4X4: Covered = {
    "kernel_size": both(4),
    "stride": both(2),
    "padding": both(1),
    "output_padding": both(0),
    "dilation": both(1),
    "groups": (1,),
    "padding_mode": ("zeros",),
}
WORDS_4X4 = "a 4x4 kernel with stride 2, padding 1, dilation 1 and zeros around"
