"""Times cases and keeps what was measured, as plain data."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

import torch

from benchmarks import steps
from benchmarks.cases import Case, cases
from genmod import measure
from genmod.registry import OpSpec
from genmod.testing import battery


class RedGate(Exception):
    """An op is wrong, so its speed is nobody's business."""


def check(spec: OpSpec, device: torch.device, dtype: torch.dtype) -> None:
    """Raise RedGate unless the op passes the battery's accuracy and gradient checks here and now."""
    try:
        battery.accuracy(spec, device, dtype)
        battery.gradients(spec, device)
    except AssertionError as error:
        raise RedGate(f"{spec.name} is not reported, because it is wrong: {error}") from error


def run(case: Case, device: torch.device, rounds: int) -> dict[str, Any]:
    """One row of results. Seconds are raw: ratios and bandwidths are left to the tables."""
    times = measure.interleaved(case.calls, device, rounds=rounds, within=case.within)
    memory = {name: measure.peak_bytes(call, device) for name, call in case.calls.items() if ":" not in name}
    return {
        "op": case.op,
        "workload": case.workload,
        "mode": case.mode,
        "dtype": str(case.dtype).removeprefix("torch."),
        "median_seconds": {name: statistics.median(t) for name, t in times.items()},
        "quartiles_seconds": {name: statistics.quantiles(t, n=4)[::2] for name, t in times.items()},
        "rounds": {name: len(t) for name, t in times.items()},
        "peak_bytes": memory,
        "bytes_moved": case.bytes_moved,
        "flops": case.flops,
    }


def run_all(
    specs: Iterable[OpSpec],
    device: torch.device,
    dtype: torch.dtype,
    *,
    modes: tuple[str, ...],
    workload: str = "",
    rounds: int = 15,
    progress: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Every workload whose name contains `workload`, of every op given, in every mode given."""
    rows = []
    for spec in specs:
        progress(f"{spec.name}: checking that it is right")
        check(spec, device, dtype)
        for chosen in (w for w in spec.workloads if workload in w.name):
            for case in cases(spec, chosen, device, dtype, modes):
                progress(f"{case.op}, {case.workload}, {case.mode}")
                rows.append(run(case, device, rounds))
    return rows


def run_steps(
    chosen: Iterable[steps.Step],
    device: torch.device,
    dtype: torch.dtype,
    *,
    workload: str = "",
    rounds: int = 15,
    progress: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Every training step whose name contains `workload`. Each checks that its contenders agree before it is timed."""
    rows = []
    for step in (s for s in chosen if workload in s.name):
        progress(f"{step.op}, {step.name}")
        rows += [run(case, device, rounds) for case in steps.cases(step, device, dtype)]
    return rows
