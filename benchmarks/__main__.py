"""Command line of the benchmark runner."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import cases, critic_steps, decoder_steps, machine, report, runner, swap_steps
from genmod.specs import specs

STEPS = (*critic_steps.STEPS, *decoder_steps.STEPS, *swap_steps.STEPS)

DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--op", action="append", choices=list(specs()), help="an op; may be repeated (default: all)")
    parser.add_argument("--steps", action="store_true", help="whole training steps instead of single ops")
    parser.add_argument("--workload", default="", help="only workloads whose name contains this")
    parser.add_argument("--mode", action="append", choices=cases.MODES, help="may be repeated (default: all)")
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds per case (default: 15)")
    parser.add_argument("--json", type=Path, help="write the results, with machine, versions and commit, to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write what was asked for."""
    args = parse(arguments)
    # A pipe has no width of its own, and a table that wraps cannot be read.
    device, console = torch.device(args.device), Console(width=None if sys.stdout.isatty() else 180)
    chosen = [spec for name, spec in specs().items() if not args.op or name in args.op]
    try:
        with console.status("") as status:
            result = measure(chosen, device, args, status.update)
    except runner.RedGate as error:
        print(error, file=sys.stderr)
        return 1
    show(result, console)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(f"{report.heading(result)}\n\n{report.markdown(result)}\n")
    return 0


def measure(chosen: list[Any], device: torch.device, args: argparse.Namespace, progress: Any) -> dict[str, Any]:
    """All results of one run, as they are written to a file."""
    dtype, modes = DTYPES[args.dtype], tuple(args.mode or cases.MODES)
    if args.steps:
        rows = runner.run_steps(STEPS, device, dtype, workload=args.workload, rounds=args.rounds, progress=progress)
        return {"machine": machine.describe(device), "dtype": args.dtype, "copy_bytes_per_second": {}, "rows": rows}
    rows = runner.run_all(
        chosen, device, dtype, modes=modes, workload=args.workload, rounds=args.rounds, progress=progress
    )
    # A copy of as many bytes as the op's forward moves: what memory, or the cache that all of them fit in, can do.
    sizes = {
        workload.name: spec.bytes_moved(workload.make(device, dtype), False) // 2
        for spec in chosen
        for workload in spec.workloads
        if args.workload in workload.name
    }
    copies = {name: machine.copy_bandwidth(device, size) for name, size in sizes.items()}
    return {
        "machine": machine.describe(device),
        "dtype": args.dtype,
        "copy_bytes_per_second": copies,
        "rows": rows,
    }


def show(result: dict[str, Any], console: Console) -> None:
    """The table, in the terminal."""
    table = Table(title=report.heading(result))
    for column in report.COLUMNS:
        table.add_column(column, justify="left" if column in ("op", "workload", "mode") else "right")
    for cells in report.rows(result):
        table.add_row(*cells)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
