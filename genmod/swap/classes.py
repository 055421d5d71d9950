"""Changing the class of a module, and changing it back."""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize


class Swapped:
    """What every mixin of a swapped module inherits. It stands in front of the module's own class.

    Attributes:
        _genmod_swap: what this instance was told when it was swapped; None makes it behave as its own class does, which
            is how instances stand whose class somebody else has changed since.
        _genmod_said: the fallbacks that were reported, so that each is said once.
    """

    _genmod_swap: Any = None
    _genmod_said: frozenset[str] = frozenset()
    _genmod_mixin: type
    _genmod_original: type[nn.Module]

    if TYPE_CHECKING:  # what the class behind a mixin has

        def forward(self, *args: Any, **kwargs: Any) -> Any: ...

    def __reduce_ex__(self, protocol: Any) -> Any:
        """By mixin and original class, which can be imported; the class made of both cannot."""
        reduced: Any = super().__reduce_ex__(protocol)
        made, args, *rest = reduced
        if made.__name__ == "__newobj__" and args[0] is type(self):  # the usual way of copyreg
            return _new, (self._genmod_mixin, self._genmod_original, *args[1:]), *rest
        return reduced

    def _genmod_stock(self, why: str) -> None:
        """Say, once for each reason, that a call takes the stock path."""
        if torch.compiler.is_compiling() or why in self._genmod_said:
            return
        self._genmod_said = self._genmod_said | {why}
        name = self._genmod_original.__name__
        warnings.warn(f"genmod: an accelerated {name} takes its stock path: {why} (said once)", UserWarning, 3)


@functools.cache
def swapped_class(mixin: type[Swapped], original: type[nn.Module]) -> type[nn.Module]:
    """The class of modules of the class `original` that were swapped by `mixin`.

    It goes by the original's name: class names are what checkpoints' configurations, sharding policies and tracers
    look at.
    """
    attributes = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "_genmod_mixin": mixin,
        "_genmod_original": original,
    }
    made: Any = type(original.__name__, (mixin, original), attributes)
    return made


def _new(mixin: type[Swapped], original: type[nn.Module], *args: Any) -> nn.Module:
    made = swapped_class(mixin, original)  # type: ignore[arg-type]  # classes are hashable, whatever instances are
    return made.__new__(made, *args)


def swap(module: nn.Module, mixin: type[Swapped], record: Any = True) -> None:
    """Make `module` an instance of its own class and `mixin`, with what the mixin is to know of it."""
    module.__class__ = swapped_class(mixin, type(module))  # type: ignore[arg-type]
    module._genmod_swap = record


def is_swapped(module: nn.Module) -> bool:
    """Whether `module` is swapped now."""
    return isinstance(module, Swapped) and module._genmod_swap is not None


def unswap(module: nn.Module) -> None:
    """Undo `swap`. A class that others derived from the swapped one stays, and acts as the original."""
    if not isinstance(module, Swapped):
        return
    for name in ("_genmod_swap", "_genmod_said"):
        module.__dict__.pop(name, None)
    original: Any = type(module).__dict__.get("_genmod_original")
    if original is not None:
        module.__class__ = original


def class_of(module: nn.Module) -> type[Any]:
    """The class whose `forward` a module was written with: beneath a swap and beneath parametrisations."""
    found: type[Any] = type(module)
    if parametrize.is_parametrized(module):
        found = parametrize.type_before_parametrizations(module)
    return getattr(found, "_genmod_original", found)
