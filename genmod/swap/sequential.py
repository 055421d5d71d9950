"""An `nn.Sequential` some of whose runs of modules are computed at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genmod.swap.classes import Swapped
from genmod.swap.conditions import hooked, overridden
from genmod.swap.pattern import Parts, RunPattern
from genmod.swap.patterns import RUN_PATTERNS


@dataclass(frozen=True)
class Run:
    """`pattern` at the positions from `start` on."""

    start: int
    pattern: str


@dataclass(frozen=True)
class Runs:
    """What a swapped Sequential knows: its runs, in order.

    Positions and names only: everything else is looked up at each call, so that modules may be replaced, hooked, moved,
    reconfigured or shared after the swap.
    """

    runs: tuple[Run, ...]


def why_not(pattern: RunPattern, parts: Parts) -> str:
    """Why `parts`, each an instance of one of the pattern's classes, cannot be computed at once."""
    for part, classes in zip(parts, pattern.parts, strict=True):
        if why := overridden(part, classes):
            return why
    return hooked(*parts) or pattern.why_not(parts)


class FusedSequential(Swapped):
    """Mixin of `nn.Sequential` and of subclasses that have its `forward`."""

    _genmod_swap: Runs | None
    _modules: dict[str, nn.Module]

    def forward(self, input: Any) -> Any:
        """As `nn.Sequential`."""
        plan = self._genmod_swap
        if plan is None or isinstance(input, torch.fx.Proxy):
            return super().forward(input)
        modules, done = tuple(self._modules.values()), 0
        for run in plan.runs:
            pattern = RUN_PATTERNS[run.pattern]
            for module in modules[done : run.start]:
                input = module(input)
            done = run.start + len(pattern.parts)
            input = self._genmod_run(pattern, modules[run.start : done], input)
        for module in modules[done:]:
            input = module(input)
        return input

    def _genmod_run(self, pattern: RunPattern, parts: Parts, input: Any) -> Any:
        matches = len(parts) == len(pattern.parts)
        why = why_not(pattern, parts) if matches else "it has become shorter"
        if not why:
            why = pattern.why_stock(parts, input) if isinstance(input, Tensor) else "its input is no tensor"
            if not why:
                return pattern.call(parts, input)
        self._genmod_stock(why)
        for part in parts:
            input = part(input)
        return input
