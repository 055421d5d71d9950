"""Schedules of a loss's weights: callables from the number of steps taken to a value.

A schedule has no state: whoever uses it (:class:`genmod.nn.ELBO`) counts the steps in a buffer, so that a checkpoint
resumes where it was saved. Given a tensor of steps, it computes where the tensor is and waits for no device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _check(start: float, end: float, **lengths: float) -> None:
    for name, value in (("start", start), ("end", end)):
        if not math.isfinite(value):
            raise ValueError(f"{name}: got {value}, expected a finite number")
    for name, value in lengths.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: got {value}, expected a positive number of steps")


class LinearSchedule:
    """From `start` to `end` along a straight line (Bowman et al., CoNLL 2016; for capacities, Burgess et al. 2018).

    Args:
        start, end: values at the beginning and at the end, and from there on.
        steps: how many steps it takes.
        delay: steps before it begins.

    Call with a number of steps, an int or an integer tensor, to a float32 tensor of no dimension.
    """

    def __init__(self, start: float, end: float, steps: int, *, delay: int = 0) -> None:
        _check(start, end, steps=steps)
        if delay < 0:
            raise ValueError(f"delay: got {delay}, expected a number of steps >= 0")
        self.start, self.end, self.steps, self.delay = start, end, steps, delay

    def __call__(self, step: int | Tensor) -> Tensor:
        """The value after `step` steps."""
        done = ((torch.as_tensor(step) - self.delay) / self.steps).clamp(0, 1)
        # Not start + (end - start) * done, which may miss `end` by a rounding.
        part = self._ease(done)
        return self.start * (1 - part) + self.end * part

    def _ease(self, done: Tensor) -> Tensor:
        return done

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.start}, {self.end}, {self.steps}, delay={self.delay})"


class CosineSchedule(LinearSchedule):
    """From `start` to `end` along half a cosine, level at both ends. Arguments as :class:`LinearSchedule`."""

    def _ease(self, done: Tensor) -> Tensor:
        return (1 - torch.cos(math.pi * done)) / 2


class CyclicalSchedule:
    """From `start` to `end` and back at once, again and again (Fu et al., NAACL 2019, with a straight rise).

    Args:
        start, end: the value at the beginning of a cycle, and that after its rise.
        period: steps in a cycle.
        rise: which part of the cycle is spent rising; the rest is spent at `end`.
        cycles: how many cycles; `end` after the last. None never ends.

    Call with a number of steps, an int or an integer tensor, to a float32 tensor of no dimension.
    """

    def __init__(self, start: float, end: float, period: int, *, rise: float = 0.5, cycles: int | None = None) -> None:
        _check(start, end, period=period)
        if not 0 < rise <= 1:
            raise ValueError(f"rise: got {rise}, expected a number in (0, 1]")
        if cycles is not None and cycles < 1:
            raise ValueError(f"cycles: got {cycles}, expected at least 1, or None")
        self.start, self.end, self.period, self.rise, self.cycles = start, end, period, rise, cycles

    def __call__(self, step: int | Tensor) -> Tensor:
        """The value after `step` steps."""
        step = torch.as_tensor(step)
        part = (step % self.period / (self.rise * self.period)).clamp(max=1)
        if self.cycles is not None:
            part = torch.where(step >= self.cycles * self.period, 1.0, part)
        return self.start * (1 - part) + self.end * part

    def __repr__(self) -> str:
        options = f"rise={self.rise}, cycles={self.cycles}"
        return f"CyclicalSchedule({self.start}, {self.end}, {self.period}, {options})"
