"""Results in the format of pytest-benchmark, whose `compare`, with its tables and histograms, then reads them.

The times come from genmod's own clock: contenders take turns, and pytest-benchmark's fixture runs each to its end
before the next. What it makes of times is computed by its own code here.
"""

from __future__ import annotations

from typing import Any

from genmod.recipes import need


def convert(result: dict[str, Any]) -> dict[str, Any]:
    """The file of a suite's result: a benchmark per case and contender, the contenders of a case in one group."""
    machine = result["machine"]
    commit = {"id": machine["commit"], "dirty": machine["uncommitted_changes"], "time": machine["date"]}
    return {
        "machine_info": {k: v for k, v in machine.items() if k not in ("commit", "uncommitted_changes", "date")},
        "commit_info": commit,
        "datetime": machine["date"],
        "version": need("pytest_benchmark").__version__,
        "benchmarks": [_benchmark(row, *contender) for row in result["rows"] for contender in row["seconds"].items()],
    }


def _benchmark(row: dict[str, Any], contender: str, seconds: list[float]) -> dict[str, Any]:
    stats = need("pytest_benchmark.stats").Stats()
    for time in seconds:
        stats.update(time)
    case = f"{row['op']}, {row['workload']}, {row['mode']}"
    name = f"{row['op']}[{row['workload']}, {row['mode']}, {contender}]"
    return {
        "group": case,
        "name": name,
        "fullname": f"genmod bench::{name}",
        "params": {k: row[k] for k in ("workload", "mode", "dtype")} | {"contender": contender},
        "param": contender,
        "extra_info": {k: row[k] for k in ("bytes_moved", "flops", "cold")},
        "options": {},
        "stats": stats.as_dict() | {"data": seconds, "iterations": 1},
    }
