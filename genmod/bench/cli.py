"""The command `genmod bench`: measure, print, and write what was asked for.

genmod bench --suite quick --json out.json --plots plots/
genmod bench --op sample_kl --op group_norm_act --cold
genmod bench --pytest "-k 'mse or laplace' --benchmark-autosave --benchmark-compare"
genmod bench --op total_correlation --scale batch --plots plots/
genmod bench --op bias_act --against HEAD~1
genmod bench overhead
genmod bench report out.json --out page.html
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from genmod.bench import against, cases, measurements, page, plots, report, runner, scaling, tables
from genmod.bench.progress import Progress
from genmod.bench.suites import SUITES
from genmod.recipes import RecipeError, need
from genmod.specs import specs

DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `genmod bench` and its subcommands."""
    parser.add_argument("--op", action="append", choices=list(specs()), help="an op; may be repeated (default: all)")
    summaries = "; ".join(f"{name}: {suite.summary}" for name, suite in SUITES.items())
    parser.add_argument("--suite", choices=SUITES, help=f"{summaries} (default: quick; full where --op is given)")
    parser.add_argument("--workload", default="", help="only workloads and steps whose name contains this")
    parser.add_argument("--mode", action="append", choices=cases.MODES, help="may be repeated (default: the suite's)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--rounds", type=int, help="timed rounds per case (default: the suite's; at least 5)")
    parser.add_argument("--cold", action="store_true", help="each call gets inputs that have left the last-level cache")
    parser.add_argument(
        "--max-autotune", action="store_true", help="ops beside torch.compile's max-autotune on a CPU too"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--scale", choices=scaling.AXIS_NAMES, help="time and memory as this size grows, instead of a suite"
    )
    kind.add_argument("--against", metavar="REV", help="compare with this git revision of genmod, instead of a suite")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results, with machine, versions and commit"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one line per case and contender")
    parser.add_argument(
        "--pytest", default="", metavar="OPTIONS", help="more options of pytest and pytest-benchmark for a suite"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write the plots, as PNG and SVG")
    actions = parser.add_subparsers(
        dest="action", metavar="overhead | report | tables", title="instead of measuring ops"
    )
    overhead = actions.add_parser("overhead", help="measure what import and calls cost around the kernels")
    overhead.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    reporting = actions.add_parser("report", help="make one self-contained HTML page of result files")
    reporting.add_argument("files", nargs="+", type=Path, metavar="FILE")
    reporting.add_argument("--out", type=Path, required=True, metavar="PAGE.html")
    refresh = actions.add_parser("tables", help="fill the tables of README.md and docs/ from benchmarks/results/")
    refresh.add_argument("--root", type=Path, default=Path("."), help="the source checkout (default: this folder)")
    refresh.add_argument("--check", action="store_true", help="change nothing; fail if a table is stale")


def main(args: argparse.Namespace) -> int:
    """Run what was asked for. Returns 1 where an op is wrong or a table stale, 2 where the user can put it right."""
    try:
        if args.action == "report":
            results = [(file.stem, _read(file)) for file in args.files]
            _write(args.out, page.html(results))
            return 0
        if args.action == "tables":
            return tables.main(args.root, check=args.check)
        return _measure(args)
    except runner.RedGate as error:
        print(f"genmod bench: {error}", file=sys.stderr)
        return 1
    except (RecipeError, against.CannotCompare) as error:
        print(f"genmod bench: {error}", file=sys.stderr)
        return 2


def _read(file: Path) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text())
    except OSError as error:
        raise RecipeError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise RecipeError(f"{file} is no result of genmod bench: {error}") from error
    if not isinstance(result, dict) or not {"machine", "rows"} <= result.keys():
        raise RecipeError(f"{file} is no result of genmod bench: it lacks 'machine' or 'rows'")
    return result


def _measure(args: argparse.Namespace) -> int:
    _check(args)
    # A pipe has no width of its own, and a table that wraps cannot be read.
    console = need("rich.console").Console(width=None if sys.stdout.isatty() else 200)
    device = torch.device(args.device)
    with _progress(console, shown=not args.pytest) as progress:  # pytest then shows its own
        if args.action == "overhead":
            result = measurements.overhead(device, progress)
        else:
            # A suite can take an hour: what it has measured is on disk when it is ended before it is done.
            result = measurements.make(args, device, DTYPES[args.dtype], progress, lambda part: _keep(args.json, part))
    if not (result["rows"] or result.get("refused") or result.get("failed")):
        if args.pytest:
            return 0  # --collect-only and its like print, and measure nothing
        raise RecipeError(f"nothing to measure: no op that was asked for has the axis {args.scale!r}")
    for title, columns, rows in measurements.tables(result):
        _show(console, title, columns, rows)
    for note in measurements.notes(result):
        console.print(note, highlight=False)
    _keep(args.json, result)
    if args.csv:
        _write(args.csv, report.to_csv(result))
    if args.markdown:
        made = measurements.tables(result)
        _write(args.markdown, "\n\n".join(f"{t}\n\n{report.markdown(c, r)}" for t, c, r in made) + "\n")
    if args.plots:
        plots.save(result, args.plots)
    return int(bool(result.get("refused") or result.get("failed")))


def _check(args: argparse.Namespace) -> None:
    """What would fail after minutes of measuring is said before them."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--device cuda: PyTorch sees no CUDA GPU here; use --device cpu")
    for option, value in (("--csv", args.csv), ("--pytest", args.pytest)):
        if value and (args.scale or args.against or args.action):
            raise RecipeError(f"{option}: it is for suites, and this is none")
    if args.suite == "models" and args.op:
        raise RecipeError("--op: the suite models is of training steps; choose among them with --workload")
    if args.rounds is not None and args.rounds < 5:
        raise RecipeError(f"--rounds: got {args.rounds}, expected at least 5, so that there are quartiles")
    if args.plots:
        need("matplotlib.figure")
    for file in filter(None, (args.json, args.csv, args.markdown)):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"cannot write {file}: {error.strerror}") from error


def _keep(file: Path | None, result: dict[str, Any]) -> None:
    """Write a result, if it is to be; a suite's has the quartiles of its times, not all of them."""
    if file is None:
        return
    if result["kind"] == "ops":
        result = result | {"rows": [{k: v for k, v in row.items() if k != "seconds"} for row in result["rows"]]}
    _write(file, json.dumps(result, indent=1) + "\n")


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"cannot write {file}: {error.strerror}") from error


@contextlib.contextmanager
def _progress(console: Any, shown: bool) -> Iterator[Progress]:
    """A bar that says what is being measured; nothing where output is no terminal."""
    rich = need("rich.progress")
    columns = (
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("{task.description}"),
    )
    with rich.Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("", total=None)
        yield Progress(
            lambda count: bar.update(task, total=count),
            lambda text: bar.update(task, description=text),
            lambda: bar.advance(task),
        )


def _show(console: Any, title: str, columns: list[str], rows: list[list[str]]) -> None:
    text, made = need("rich.text").Text, need("rich.table").Table
    table = made(title=text(title), title_justify="left")
    for column in columns:
        table.add_column(text(column), justify="left" if column in report.LEFT else "right")
    for filled in rows:
        table.add_row(*map(text, filled))  # names have brackets, which rich would take for markup
    console.print(table)
