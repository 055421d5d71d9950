"""The penalties as modules: they hold the options, and are called with the critic and its samples."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from genmod.penalties import approximate, functional


class Penalty(nn.Module):
    """A gradient penalty with its options. `penalty(critic, *samples)` is the function of that name with them."""

    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        known = [p.name for p in inspect.signature(self.function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        for name in options:
            if name not in known:
                raise TypeError(f"{name}: not an option of {type(self).__name__}, expected one of {', '.join(known)}")
        self.options = options

    def forward(self, critic: Callable[[Tensor], Tensor], *samples: Tensor) -> Tensor:
        # The critic is an argument, not a submodule: its parameters are its own.
        return type(self).function(critic, *samples, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class R1(Penalty):
    """Module of :func:`genmod.penalties.r1`."""

    function = staticmethod(functional.r1)


class R2(Penalty):
    """Module of :func:`genmod.penalties.r2`."""

    function = staticmethod(functional.r2)


class R1R2(Penalty):
    """Module of :func:`genmod.penalties.r1_r2`."""

    function = staticmethod(functional.r1_r2)


class WGANGP(Penalty):
    """Module of :func:`genmod.penalties.wgan_gp`."""

    function = staticmethod(functional.wgan_gp)


class WGANLP(Penalty):
    """Module of :func:`genmod.penalties.wgan_lp`."""

    function = staticmethod(functional.wgan_lp)


class DRAGAN(Penalty):
    """Module of :func:`genmod.penalties.dragan`."""

    function = staticmethod(functional.dragan)


class ZeroCentered(Penalty):
    """Module of :func:`genmod.penalties.zero_centered`."""

    function = staticmethod(functional.zero_centered)


class MaxGP(Penalty):
    """Module of :func:`genmod.penalties.max_gp`."""

    function = staticmethod(functional.max_gp)


class ApproximateR1(Penalty):
    """Module of :func:`genmod.penalties.approximate_r1`."""

    function = staticmethod(approximate.approximate_r1)


class ApproximateR2(Penalty):
    """Module of :func:`genmod.penalties.approximate_r2`."""

    function = staticmethod(approximate.approximate_r2)
