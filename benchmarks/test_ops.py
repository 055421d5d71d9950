"""Each op's time by pytest-benchmark's fixture, for its tables, `--benchmark-save` and `--benchmark-compare`.

It runs one contender to its end before the next, so that ratios between them feel how the machine changes meanwhile;
those of `genmod bench`, where they take turns, do not.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from genmod.bench import cases, runner
from genmod.registry import OpSpec, Workload


@functools.cache
def _error(spec: OpSpec, device: torch.device, dtype: torch.dtype) -> str:
    """Why the op is wrong, if it is."""
    try:
        runner.check(spec, device, dtype)
    except runner.RedGate as error:
        return str(error)
    return ""


@functools.lru_cache(maxsize=1)
def _case(spec: OpSpec, workload: Workload, mode: str, device: torch.device, dtype: torch.dtype) -> cases.Case:
    """One for all contenders, which follow one another."""
    return next(cases.cases(spec, workload, device, dtype, (mode,)))


def test_op(
    spec: OpSpec, workload: Workload, mode: str, contender: str, benchmark: Any, request: pytest.FixtureRequest
) -> None:
    device = torch.device(request.config.getoption("--device"))
    dtype = getattr(torch, request.config.getoption("--dtype"))
    wrong = _error(spec, device, dtype)
    if wrong:
        pytest.fail(wrong, pytrace=False)  # its speed is nobody's business
    call = _case(spec, workload, mode, device, dtype).calls[contender]
    benchmark.group = f"{spec.name}, {workload.name}, {mode}"
    synchronize = torch.cuda.synchronize if device.type == "cuda" else None

    def timed() -> None:
        call()
        if synchronize is not None:
            synchronize()

    benchmark(timed)
