"""One measurement from the options of the command line to plain data, and that data as tables."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

from genmod import measure
from genmod.bench import against, cases, machine, peers, report, runner, scaling
from genmod.bench import overhead as overheads
from genmod.bench.progress import Progress
from genmod.bench.suites import SUITES
from genmod.recipes import need
from genmod.specs import specs

Table = tuple[str, list[str], list[list[str]]]


def make(
    args: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress,
    keep: Callable[[dict[str, Any]], None] = lambda unfinished: None,
) -> dict[str, Any]:
    """A suite, scaling curves or a comparison with another revision: what the options ask for.

    After each row of a suite `keep` gets the result so far, which says that it is unfinished.
    """
    chosen = [spec for name, spec in specs().items() if not args.op or name in args.op]
    name = args.suite or ("full" if args.op else "quick")
    suite = SUITES[name]
    suite = dataclasses.replace(
        suite, rounds=args.rounds or suite.rounds, modes=tuple(args.mode) if args.mode else suite.modes
    )
    result: dict[str, Any] = {"kind": "ops", "machine": machine.describe(device), "dtype": args.dtype}
    if args.scale:
        rows = _scaling(chosen, args.scale, device, dtype, suite.rounds, progress)
        return result | {"kind": "scaling", "axis": args.scale, "rows": rows}
    if args.against:
        modes = tuple(m for m in suite.modes if m != "double backward") or cases.MODES[:2]
        rows = against.run(chosen, args.against, name, device, args.dtype, modes, args.workload, suite.rounds, progress)
        return result | {"kind": "against", "revision": args.against, "rows": rows}
    result["suite"] = name
    if name != "models":
        result |= {"matmul_flops_per_second": machine.matmul_flops(device, dtype), "peers": peers.versions()}
    so_far: list[runner.Row] = []

    def add(row: runner.Row) -> None:
        so_far.append(row)
        keep(result | {"rows": so_far, "unfinished": True})

    need("pytest_benchmark", "bench")
    from genmod.bench import session  # pytest is needed by suites alone

    options = {"cold": args.cold, "autotuned": args.max_autotune, "machine": result["machine"]}
    plan = session.Plan(name, suite, tuple(chosen), device, dtype, args.workload, **options)
    return result | session.run(plan, progress._replace(row=add), args.pytest)


def _scaling(
    chosen: list[Any], axis: str, device: torch.device, dtype: torch.dtype, rounds: int, progress: Progress
) -> list[dict[str, Any]]:
    """Forward and backward of eager and genmod at each size; compiling each size anew would take minutes an op."""
    plan = [(spec, size, w) for spec in chosen for size, w in scaling.workloads(spec, axis)]
    progress.total(len(plan))
    rows, checked = [], set()
    for spec, size, workload in plan:
        progress.now(f"{spec.name}, {workload.name}")
        if spec.name not in checked:
            runner.check(spec, device, dtype)
            checked.add(spec.name)
        case = cases.case(spec, workload, "forward+backward", device, dtype, compiled=False)
        calls = {name: case.calls[name] for name in ("eager", "genmod")}
        times = measure.interleaved(calls, device, rounds=rounds, budget=2.0)
        rows.append({
            "op": spec.name,
            "workload": workload.name,
            "mode": case.mode,
            "size": size,
            "median_seconds": {name: statistics.median(t) for name, t in times.items()},
            "quartiles_seconds": {name: statistics.quantiles(t, n=4)[::2] for name, t in times.items()},
            "peak_bytes": {name: measure.peak_bytes(call, device) for name, call in calls.items()},
        })  # fmt: skip
        progress.done()
    return rows


def overhead(device: torch.device, progress: Progress) -> dict[str, Any]:
    """What import and calls cost around the kernels."""
    progress.total(1 + len(specs()))
    progress.now("import genmod, in processes of its own")
    seconds = overheads.import_seconds()
    progress.done()
    rows = []
    for spec in specs().values():
        progress.now(spec.name)
        rows.append(overheads.per_call(spec, device))
        progress.done()
    return {
        "kind": "overhead",
        "machine": machine.describe(device),
        "dtype": "float32",
        "import_seconds": seconds,
        "rows": [row for row in rows if row is not None],
        "without_kernel": [name for name, row in zip(specs(), rows) if row is None],
    }


def tables(result: dict[str, Any]) -> Iterator[Table]:
    """Title, columns and cells of each table that a result makes."""
    heading = report.heading(result)
    kind = result.get("kind", "ops")
    if kind == "scaling":
        columns = ["op", "workload", "genmod", "x eager", "peak memory", "of eager's"]
        yield heading, columns, [_scaling_cells(row) for row in result["rows"]]
    elif kind == "against":
        yield (
            f"{heading}; against {result['revision']}",
            list(against.COLUMNS),
            [against.cells(row) for row in result["rows"]],
        )
    elif kind == "overhead":
        columns = [
            "op",
            "shape",
            "kernel",
            "op alone",
            "over the kernel",
            "in training",
            "over the kernel, in training",
        ]
        yield heading, columns, [_overhead_cells(row) for row in result["rows"]]
    else:
        yield heading, *report.table(result["rows"], result)


def notes(result: dict[str, Any]) -> Iterator[str]:
    """What belongs under the tables, a line each."""
    if result.get("matmul_flops_per_second"):
        yield f"Ceiling: a matrix product makes {result['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s here."
    if result.get("unfinished"):
        yield "Unfinished: the run was ended before it had measured everything."
    for refused in result.get("refused", ()):
        yield refused["why"]
    for failed in result.get("failed", ()):
        yield f"Failed: {failed['case']}: {failed['why']}"
    for peer in result.get("peers_not_raced", ()):
        yield f"Not raced: {peer['peer']}'s {peer['what']} beside {peer['op']}: {peer['why']}."
    if "import_seconds" in result:
        seconds = result["import_seconds"]
        spread = f"{min(seconds) * 1e3:.0f} to {max(seconds) * 1e3:.0f}"
        yield f"import genmod takes {statistics.median(seconds) * 1e3:.0f} ms beyond import torch ({spread} ms)."
        if result["without_kernel"]:
            yield f"Without a kernel at these sizes: {', '.join(result['without_kernel'])}."


def _scaling_cells(row: dict[str, Any]) -> list[str]:
    median, memory = row["median_seconds"], row["peak_bytes"]
    share = f"{memory['genmod'] / memory['eager']:.2f}x" if memory["eager"] else "-"
    ours, mebibytes = report.time(median["genmod"]), f"{memory['genmod'] / 2**20:.1f} MiB"
    return [row["op"], row["workload"], ours, f"{median['eager'] / median['genmod']:.2f}", mebibytes, share]


def _overhead_cells(row: dict[str, Any]) -> list[str]:
    kernel, alone, training = (row["median_seconds"][k] for k in ("kernel", "op", "op in training"))
    micro = [f"{seconds * 1e6:.1f} us" for seconds in (kernel, alone, alone - kernel, training, training - kernel)]
    return [row["op"], str(row["shape"]), *micro]
