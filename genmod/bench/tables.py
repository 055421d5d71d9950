"""The tables of README.md and docs/, made from the committed results: `genmod bench tables`, and `--check` for CI.

A table stands between two comments. The first says what it is of:

    <!-- measured: short
    cpu.json op=sample_kl mode=forward workload="[4096, 512]"
    -->
    (the table)
    <!-- /measured -->

`short`, `full` or `losses` is the form; each line names a file of benchmarks/results/, or several by a pattern, and
texts that op, mode and workload must contain (op: be). `full` also writes where and when its one file was measured.
`recipes` and `pretext` are of one file of training runs, and say what these reach.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genmod.bench import measurements, report
from genmod.recipes import RecipeError, pretext_results
from genmod.recipes import results as recipe_results

RESULTS = Path("benchmarks") / "results"
_BLOCK = re.compile(r"(<!-- measured: (\w+)\n(.*?)-->\n)(.*?)(<!-- /measured -->)", re.DOTALL)
_FILTERS = ("op", "mode", "workload")
_OF_RUNS = {"recipes": recipe_results.table, "pretext": pretext_results.table}


def main(root: Path, *, check: bool = False) -> int:
    """Rewrite what is stale below `root`, or, with `check`, say so and return 1."""
    if not (root / RESULTS).is_dir():
        raise RecipeError(f"--root: {root} has no {RESULTS}; it has to be a source checkout")
    stale = []
    for file in documents(root):
        text = file.read_text(encoding="utf-8")
        fresh = filled(text, root / RESULTS)
        if fresh != text:
            stale.append(str(file.relative_to(root)))
            if not check:
                file.write_text(fresh, encoding="utf-8")
    if stale:
        print(f"genmod bench tables: {'stale' if check else 'written'}: {', '.join(stale)}", file=sys.stderr)
    return int(check and bool(stale))


def documents(root: Path) -> list[Path]:
    """The README and the pages that may hold tables."""
    return [f for f in (root / "README.md", *sorted((root / "docs").rglob("*.md"))) if f.is_file()]


def filled(text: str, results: Path) -> str:
    """The text with every table made anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{_table(found[2], found[3], results)}\n\n{found[5]}", text)


def _table(form: str, lines: str, results: Path) -> str:
    if form in _OF_RUNS:
        return _OF_RUNS[form](json.loads((results / lines.strip()).read_text(encoding="utf-8"))["runs"])
    rows: list[tuple[report.Row, report.Result]] = []
    for line in filter(None, (line.strip() for line in lines.splitlines())):
        found = list(_selected(line, results))
        if not found:
            raise RecipeError(f"nothing is selected by {line!r}")
        rows += found
    if form == "short":
        return report.short(rows)
    if form == "losses":
        return report.losses(rows)
    if form != "full":
        raise RecipeError(f"measured: got {form!r}, expected short, full, losses, recipes or pretext")
    result = rows[0][1]
    if any(r is not result for _, r in rows):
        raise RecipeError("a full table is of one file")
    return "\n\n".join(_full({**result, "rows": [row for row, _ in rows]}))


def _full(result: dict[str, Any]) -> Iterator[str]:
    for heading, columns, cells in measurements.tables(result):
        yield f"{heading}:"
        yield report.markdown(columns, cells, right=[c for c in columns if c not in report.LEFT])
    notes = list(measurements.notes(result))
    if notes:
        yield "\n".join(f"- {note}" for note in notes)


def _selected(line: str, results: Path) -> Iterator[tuple[report.Row, report.Result]]:
    pattern, *filters = shlex.split(line)
    wanted = dict(f.split("=", 1) for f in filters)
    if unknown := wanted.keys() - set(_FILTERS):
        raise RecipeError(f"{line!r}: unknown {', '.join(sorted(unknown))}; known: {', '.join(_FILTERS)}")
    for file in sorted(results.glob(pattern)):
        result = json.loads(file.read_text(encoding="utf-8"))
        # Results of trained models lie beside those of the clock.
        if "rows" not in result or ("*" in pattern and result.get("kind", "ops") != "ops"):
            continue
        for row in result["rows"]:
            if _wanted(row, wanted):
                yield row, result


def _wanted(row: dict[str, Any], wanted: dict[str, str]) -> bool:
    if "op" in wanted and row["op"] != wanted["op"]:
        return False
    if "mode" in wanted and row["mode"] != wanted["mode"]:
        return False
    return wanted.get("workload", "") in row.get("workload", "")
