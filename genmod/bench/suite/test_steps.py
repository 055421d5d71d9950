"""Each training step of a whole model, which checks that its contenders agree before it is timed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from genmod.bench import step as steps
from genmod.bench.cases import Case
from genmod.bench.step import Step


def test_step(step: Step, device: torch.device, dtype: torch.dtype, race: Callable[[Case], None]) -> None:
    race(steps.case(step, device, dtype))
