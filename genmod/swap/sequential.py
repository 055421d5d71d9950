"""An `nn.Sequential` some of whose runs of modules are computed at once, in the memory format that is faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genmod import layout
from genmod.swap import activations
from genmod.swap.classes import Swapped, class_of
from genmod.swap.conditions import hooked, overridden
from genmod.swap.pattern import Parts, RunPattern, name_of
from genmod.swap.patterns import RUN_PATTERNS
from genmod.swap.patterns.norm_act import BATCH_NORMS

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
#: What computes the same in either memory format and returns images.
_NEUTRAL = frozenset(
    map(
        name_of,
        (
            *_CONVOLUTIONS,
            *activations.MODULES,
            *BATCH_NORMS,
            nn.GroupNorm,
            nn.Upsample,
            nn.UpsamplingNearest2d,
            nn.AvgPool2d,
            nn.MaxPool2d,
            nn.Dropout,
            nn.Dropout2d,
            nn.Identity,
        ),
    )
) | {"diffusers.models.unets.unet_2d_blocks:AutoencoderTinyBlock"}


@dataclass(frozen=True)
class Run:
    """`pattern` at the positions from `start` on."""

    start: int
    pattern: str


@dataclass(frozen=True)
class Runs:
    """What a swapped Sequential knows. Positions and names only: everything else is looked up at each call, so that
    modules may be replaced, hooked, moved, reconfigured or shared after the swap.

    Attributes:
        runs: in order.
        first, last: the positions from `first` to before `last` run in channels_last; none do where both are 0.
    """

    runs: tuple[Run, ...]
    first: int = 0
    last: int = 0


def why_not(pattern: RunPattern, parts: Parts) -> str:
    """Why `parts`, each an instance of one of the pattern's classes, cannot be computed at once."""
    for part, classes in zip(parts, pattern.parts, strict=True):
        if why := overridden(part, classes):
            return why
    return hooked(*parts) or pattern.why_not(parts)


def channels_last_range(module: nn.Sequential) -> tuple[int, int] | None:
    """The positions, first and one past the last, that may run in channels_last and have two convolutions or more."""
    children = list(module._modules.values())
    convolutions = [i for i, child in enumerate(children) if type(child) in _CONVOLUTIONS]
    if not convolutions:
        return None
    first = last = convolutions[0]
    while last < len(children) and _neutral(children[last]):
        last += 1
    inside = sum(_convolutions_in(child) for child in children[first:last])
    return (first, last) if inside > 1 else None


def _neutral(module: nn.Module | None) -> bool:
    if module is None or name_of(class_of(module)) in _NEUTRAL:
        return module is not None
    return class_of(module) is nn.Sequential and all(map(_neutral, module._modules.values()))


def _convolutions_in(module: nn.Module | None) -> int:
    return 0 if module is None else sum(isinstance(m, _CONVOLUTIONS) for m in module.modules())


class FusedSequential(Swapped):
    """Mixin of `nn.Sequential` and of subclasses that have its `forward`."""

    _genmod_swap: Runs | None
    _modules: dict[str, nn.Module]

    def forward(self, input: Any) -> Any:
        """As `nn.Sequential`."""
        plan = self._genmod_swap
        if plan is None or isinstance(input, torch.fx.Proxy):
            return super().forward(input)
        modules = tuple(self._modules.values())
        middle = modules[plan.first : plan.last]
        if not middle or not _converts(input) or hooked(*middle) or not all(map(_neutral, middle)):
            return self._genmod_steps(modules, 0, len(modules), input)
        input = self._genmod_steps(modules, 0, plan.first, input)
        outside = layout.memory_format_of(input)
        input = self._genmod_steps(modules, plan.first, plan.last, input, channels_last=True)
        return self._genmod_steps(modules, plan.last, len(modules), input.contiguous(memory_format=outside))

    def _genmod_steps(self, modules: Parts, start: int, stop: int, input: Any, channels_last: bool = False) -> Any:
        """The positions from `start` to before `stop`."""
        starting = {run.start: RUN_PATTERNS[run.pattern] for run in self._genmod_swap.runs} if self._genmod_swap else {}
        while start < stop:
            if channels_last:
                input = input.contiguous(memory_format=torch.channels_last)
            pattern = starting.get(start)
            parts = modules[start : start + (1 if pattern is None else len(pattern.parts))]
            start += len(parts)
            input = parts[0](input) if pattern is None else self._genmod_run(pattern, parts, input)
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


def _converts(input: Any) -> bool:
    """Whether channels_last was measured to be faster for this input, and changes nothing else."""
    return (
        isinstance(input, Tensor)
        and input.dim() == 4
        and input.device.type == "cpu"
        and input.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )
