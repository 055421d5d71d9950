"""Whole training steps: what an op is worth in the model that it was made for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cases import Case

#: Contender name -> function without arguments that takes one step.
Contenders = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Step:
    """A training step, as contenders that do the same work on the same numbers.

    Attributes:
        op: what of genmod it shows.
        name: model, batch and shape.
        make: `(device, dtype) -> contenders`, among them "eager", "compile" where that can run, and "genmod".
    """

    op: str
    name: str
    make: Callable[[torch.device, torch.dtype], Contenders]


def cases(step: Step, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """The one case of a step, in the runner's form. Bytes and operations of a whole model are not counted."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield Case(step.op, step.name, "step", dtype, step.make(device, dtype), {}, 0, 0)
