"""Times cases and keeps what was measured, as plain data."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from genmod import measure
from genmod.bench.cases import COPY, Case
from genmod.bench.suites import Suite
from genmod.registry import OpSpec
from genmod.testing import battery

Row = dict[str, Any]


class RedGate(Exception):
    """An op is wrong, so its speed is nobody's business."""


def check(spec: OpSpec, device: torch.device, dtype: torch.dtype) -> None:
    """Raise RedGate unless the op passes the battery's accuracy and gradient checks here and now."""
    try:
        battery.accuracy(spec, device, dtype)
        battery.gradients(spec, device)
    except AssertionError as error:
        raise RedGate(f"{spec.name} is not reported, because it is wrong: {error}") from error


def run(case: Case, device: torch.device, suite: Suite) -> Row:
    """One row of results. Seconds are raw: ratios and bandwidths are left to the tables."""
    times = measure.interleaved(case.calls, device, rounds=suite.rounds, budget=suite.budget, within=case.within)
    copy = times.pop(COPY, None)
    whole = {name: call for name, call in case.calls.items() if not name.startswith(("genmod:", "ceiling:"))}
    # What Inductor generates for a CPU is no operator, and the profiler does not see it.
    seen = {name for name in whole if device.type == "cuda" or not name.startswith("compile")}
    row = {
        "op": case.op,
        "workload": case.workload,
        "mode": case.mode,
        "dtype": str(case.dtype).removeprefix("torch."),
        "cold": case.cold,
        "median_seconds": {name: statistics.median(t) for name, t in times.items()},
        "quartiles_seconds": {name: statistics.quantiles(t, n=4)[::2] for name, t in times.items()},
        "rounds": {name: len(t) for name, t in times.items()},
        "seconds": times,  # of each round
        "peak_bytes": {name: measure.peak_bytes(call, device) for name, call in whole.items()},
        "launches": {name: measure.launches(whole[name], device) for name in whole if name in seen},
        "bytes_moved": case.bytes_moved,
        "flops": case.flops,
        "copy_bytes_per_second": case.copied / statistics.median(copy) if copy else None,
    }
    if case.mode == "step":
        row["products_share"] = {name: measure.products_share(whole[name], device) for name in whole if name in seen}
    return row
