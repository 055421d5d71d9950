"""Times cases and keeps what was measured, as plain data."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from genmod import measure
from genmod.bench import step
from genmod.bench.cases import COPY, Case, cases
from genmod.bench.suites import Suite, workloads
from genmod.registry import OpSpec
from genmod.testing import battery

Row = dict[str, Any]


class RedGate(Exception):
    """An op is wrong, so its speed is nobody's business."""


class Progress(NamedTuple):
    """What a run tells while it goes: `total(n)` once, `now(text)` at each thing begun, `done()` at its end, and each
    `row(row)` as it is measured."""

    total: Callable[[int], None] = lambda count: None
    now: Callable[[str], None] = lambda text: None
    done: Callable[[], None] = lambda: None
    row: Callable[[Row], None] = lambda row: None


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


def run_ops(
    specs: Iterable[OpSpec],
    device: torch.device,
    dtype: torch.dtype,
    name: str,
    suite: Suite,
    *,
    workload: str = "",
    cold: bool = False,
    progress: Progress = Progress(),  # noqa: B008 (immutable)
) -> dict[str, Any]:
    """A suite of ops: `rows`, `peers_not_raced`, and `refused`, the ops that are wrong and so have no rows."""
    plan = [(spec, chosen) for spec in specs if (chosen := list(workloads(spec, name, workload, device.type)))]
    progress.total(sum(1 + len(chosen) * len(suite.modes) for _, chosen in plan))
    rows: list[Row] = []
    not_raced, refused = {}, []
    for spec, chosen in plan:
        progress.now(f"{spec.name}: checking that it is right")
        try:
            check(spec, device, dtype)
        except RedGate as error:
            refused.append({"op": spec.name, "why": str(error)})
            continue
        finally:
            progress.done()
        for each in chosen:
            made = cases(spec, each, device, dtype, suite.modes, compiled=suite.compiled, cold=cold)
            for mode in suite.modes:
                progress.now(f"{spec.name}, {each.name}, {mode}")
                case = next(made)
                rows.append(run(case, device, suite))
                progress.row(rows[-1])
                for peer in case.not_raced:
                    not_raced[spec.name, peer["peer"], peer["why"]] = {"op": spec.name, "workload": each.name, **peer}
                progress.done()
    return {"rows": rows, "peers_not_raced": list(not_raced.values()), "refused": refused}


def run_steps(
    chosen: Iterable[step.Step],
    device: torch.device,
    dtype: torch.dtype,
    suite: Suite,
    *,
    workload: str = "",
    progress: Progress = Progress(),  # noqa: B008 (immutable)
) -> list[Row]:
    """Every training step whose name contains `workload`. Each checks that its contenders agree before it is timed."""
    plan = [s for s in chosen if workload in s.name and (device.type == "cuda" or not s.gpu)]
    progress.total(len(plan))
    rows = []
    for each in plan:
        progress.now(f"{each.op}, {each.name}")
        for case in step.cases(each, device, dtype):
            rows.append(run(case, device, suite))
            progress.row(rows[-1])
        progress.done()
    return rows
