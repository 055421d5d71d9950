"""What a pattern is: what to look for, what to put there, how exact that is, and where it pays.

Nothing here knows how a model is walked, so the table of patterns can serve another walker too, such as a backend of
`torch.compile`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

#: Modules of the classes that a pattern asks for.
Parts = tuple[Any, ...]
Exactness = Literal["bit-equal", "reassociated"]
Modes = Literal["training and evaluation", "evaluation", "training"]

#: Words for `accelerate(allow=...)`, and what each unlocks.
ALLOW = {
    "exact": "the same function: bit-equal, or sums in another order, within the bound that the report states",
    "folded": "weights multiplied ahead of time in half precision, which rounds their product once more",
    "critic": "layers that are equal, and pay only under gradient penalties",
}


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """What all patterns have.

    Attributes:
        name: unique; gains are tabled under it.
        became: what the report says stands there after the swap.
        exactness: of outputs and gradients.
        bound: of the error, in words and numbers.
        modes: in which the fast path runs; in the other one the module takes its stock path.
        allow: the word of :data:`ALLOW` that it needs.
        allow_half: the same where parameters are in half precision.
    """

    name: str
    became: str
    exactness: Exactness
    bound: str
    modes: Modes = "training and evaluation"
    allow: str = "exact"
    allow_half: str = "exact"


def _always(*_: object) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class RunPattern(Pattern):
    """Modules that follow one another in an `nn.Sequential`.

    Attributes:
        parts: the classes that may stand at each place.
        why_not: of modules of these classes, why they are not covered; an empty string where they are.
        why_stock: the same of such modules and an input, asked at each call.
        call: computes what the modules do.
    """

    parts: tuple[tuple[type[nn.Module], ...], ...]
    call: Callable[[Parts, Tensor], Tensor]
    why_not: Callable[[Parts], str] = _always
    why_stock: Callable[[Parts, Tensor], str] = _always


@dataclass(frozen=True, kw_only=True)
class ModulePattern(Pattern):
    """A single module, which gets another class.

    Attributes:
        original: "package.module:Class", matched by name, so that no library is imported to look for its classes.
        mixin: "package.module:Class", a subclass of `Swapped`, imported when a module is swapped.
        why_not: of a module of that class, and of what may run before it, why it is not covered. "What may run before"
            are the modules in front of it in every `nn.Sequential` that it is in, and None for any other place.
        looks_for: whether a module of that class is one that the pattern is about; the report is silent on others.
    """

    original: str
    mixin: str
    why_not: Callable[[nn.Module, Sequence[nn.Module | None]], str] = _always
    looks_for: Callable[[nn.Module], bool] = lambda module: True


def imported(reference: str) -> type:
    """The class that "package.module:Class" names."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


def name_of(cls: type) -> str:
    """A class as patterns name it."""
    return f"{cls.__module__}:{cls.__qualname__}"
