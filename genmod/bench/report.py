"""Tables of results, for the terminal, Markdown, CSV and HTML: ratios, spread, rates against the ceilings, memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

Result = dict[str, Any]
Row = dict[str, Any]

#: Column -> what it says; `cells` fills them, and a column that nothing fills is left out.
COLUMNS = {
    "op": "",
    "workload": "",
    "mode": "",
    "genmod": "median time of one call",
    "±": "half the distance of the quartiles, of the median",
    "x eager": "how many times longer eager PyTorch takes",
    "x compile": "the same for torch.compile",
    "x max-autotune": "the same for torch.compile, mode max-autotune",
    "x peers": "the same for other packages",
    "reference": "the same for genmod's own reference",
    "GB/s": "bytes of an ideal kernel per second",
    "of copy": "of the speed of a copy of as many bytes",
    "GFLOP/s": "operations per second",
    "roofline": "of the speed that the copy and a matrix product of this machine allow",
    "products": "part of the time in convolutions, matrix products and recurrent networks, genmod / eager",
    "ceiling": "x eager if genmod's step were nothing but these",
    "data": "time to fetch images and random numbers, of that and the step together",
    "launches": "kernels started, genmod / eager",
    "peak memory": "held at most beyond what was held before, and against eager",
}
LEFT = ("op", "workload", "mode", "x peers")
SHORT = ("what", "genmod", "eager takes", "compile takes", "peak memory")


def cells(row: Row, result: Result) -> dict[str, str]:
    """What the table says about one case; columns without a value are missing."""
    found = {"op": row["op"], "workload": row["workload"], "mode": row["mode"]}
    if row.get("cold"):
        found["workload"] += ", cold"
    ours = row["median_seconds"]["genmod"]
    low, high = row["quartiles_seconds"]["genmod"]
    found["genmod"], found["±"] = time(ours), f"{50 * (high - low) / ours:.0f} %"
    columns = {
        "x eager": "eager",
        "x compile": "compile",
        "x max-autotune": "compile:max-autotune",
        "reference": "genmod:reference",
    }
    found |= {column: f"{r:.2f}" for column, name in columns.items() if (r := ratio(row, name)) is not None}
    peers = sorted(name for name in row["median_seconds"] if name.startswith("peer:"))
    if peers:
        found["x peers"] = ", ".join(f"{name.removeprefix('peer:')} {ratio(row, name):.2f}" for name in peers)
    if row["bytes_moved"] and row["mode"] != "double backward":
        found["GB/s"] = f"{row['bytes_moved'] / ours / 1e9:.1f}"
        if copy := copy_speed(row, result):
            found["of copy"] = f"{100 * row['bytes_moved'] / ours / copy:.0f} %"
        if result.get("matmul_flops_per_second"):
            found["GFLOP/s"] = f"{row['flops'] / ours / 1e9:.1f}"
    if (share := roofline(row, result)) is not None:
        found["roofline"] = f"{100 * share:.0f} %"
    if shares := row.get("products_share"):
        found["products"] = f"{100 * shares['genmod']:.0f} / {100 * shares['eager']:.0f} %"
        if shares["genmod"] >= 0.01:  # else it has no product, and no such ceiling
            found["ceiling"] = f"{row['median_seconds']['eager'] / ours / shares['genmod']:.2f}"
    if (fetching := row["median_seconds"].get("genmod:data")) is not None:
        found["data"] = f"{100 * fetching / (fetching + ours):.1f} %"
    if launches := row.get("launches"):
        found["launches"] = f"{launches['genmod']} / {launches['eager']}"
    memory = row["peak_bytes"]
    share_of_memory = f"{memory['genmod'] / memory['eager']:.2f}x eager" if memory["eager"] else "-"
    found["peak memory"] = f"{memory['genmod'] / 2**20:.1f} MiB, {share_of_memory}"
    return found


def ratio(row: Row, name: str) -> float | None:
    """How many times longer than genmod the contender takes; None if it did not run."""
    median = row["median_seconds"]
    return median[name] / median["genmod"] if name in median else None


def copy_speed(row: Row, result: Result) -> float | None:
    """Bytes per second of a copy of as many bytes, made beside the row, or, in older files, beside the workload."""
    return row.get("copy_bytes_per_second") or result.get("copy_bytes_per_second", {}).get(row["workload"])


def roofline(row: Row, result: Result) -> float | None:
    """The time that copy and matrix product of this machine would need at best, in parts of the time taken."""
    copy, matmul = copy_speed(row, result), result.get("matmul_flops_per_second")
    if not (copy and matmul and row["bytes_moved"]) or row["mode"] == "double backward":
        return None
    return max(row["bytes_moved"] / copy, row["flops"] / matmul) / row["median_seconds"]["genmod"]


def time(seconds: float) -> str:
    """With a unit in which it can be read."""
    return f"{seconds * 1e6:,.0f} us" if seconds < 0.01 else f"{seconds * 1e3:,.1f} ms"


def table(rows: Iterable[Row], result: Result) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of these rows; "-" where one row lacks what another has."""
    filled = [cells(row, result) for row in rows]
    columns = [c for c in COLUMNS if any(c in f for f in filled)]
    return columns, [[f.get(c, "-") for c in columns] for f in filled]


def markdown(columns: Iterable[str], rows: Iterable[Iterable[str]], right: Iterable[str] = ()) -> str:
    """A Markdown table; the columns named in `right` are aligned to the right."""
    columns, right = list(columns), set(right)
    rule = "|".join("--:" if c in right else "---" for c in columns)
    lines = [f"| {' | '.join(columns)} |", f"|{rule}|"]
    return "\n".join(lines + [f"| {' | '.join(cells)} |" for cells in rows])


def full(result: Result, rows: list[Row] | None = None) -> str:
    """Every column, as Markdown."""
    columns, filled = table(result["rows"] if rows is None else rows, result)
    return markdown(columns, filled)


def short(rows: Iterable[tuple[Row, Result]]) -> str:
    """A few columns of rows from any files, as Markdown, for the README."""
    filled = []
    for row, _ in rows:
        takes = [f"{r:.2g}x" if (r := ratio(row, name)) is not None else "-" for name in ("eager", "compile")]
        memory = row["peak_bytes"]
        share = f"{memory['genmod'] / memory['eager']:.2f}x" if memory["eager"] else "-"
        what = f"`{row['op']}` {row['workload']}, {row['mode']}"
        filled.append([what, time(row["median_seconds"]["genmod"]), *takes, share])
    return markdown(SHORT, filled, right=SHORT[1:])


def losses(rows: Iterable[tuple[Row, Result]]) -> str:
    """Where something else was faster than genmod: Markdown, worst first."""
    lost = []
    for row, _ in rows:
        others = [n for n in row["median_seconds"] if n != "genmod" and not n.startswith(("genmod:", "ceiling:"))]
        name = min(others, key=lambda n: row["median_seconds"][n])
        lost.append((ratio(row, name) or 1.0, name, row))
    lost = sorted((entry for entry in lost if entry[0] < 1), key=lambda entry: entry[0])
    columns = ("op", "workload", "mode", "genmod", "faster", "takes")
    filled = [
        [row["op"], row["workload"], row["mode"], time(row["median_seconds"]["genmod"]), name, f"{share:.2f}x"]
        for share, name, row in lost
    ]
    return markdown(columns, filled, right=columns[3:]) if filled else "Nowhere in these files."


def heading(result: Result) -> str:
    """Where and with what it was measured, in one line."""
    machine = result["machine"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads, {machine['instruction_set']}"
    commit = f"commit {machine['commit'][:10]}" if machine["commit"] else f"genmod {machine['genmod']}"
    changed = " and later changes" if machine["uncommitted_changes"] else ""
    return f"{where}; torch {machine['torch']}, {result['dtype']}, {commit}{changed}, {machine['date'][:10]}"


def to_csv(result: Result) -> str:
    """One line per case and contender, all numbers in base units."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    kept = ("op", "workload", "mode", "dtype", "cold", "bytes_moved", "flops")
    measured = ("contender", "median_seconds", "lower_quartile", "upper_quartile", "rounds", "x_genmod", "peak_bytes")
    writer.writerow([*kept, *measured, "launches", "copy_bytes_per_second", "matmul_flops_per_second"])
    for row in result["rows"]:
        for name, seconds in row["median_seconds"].items():
            times = (name, seconds, *row["quartiles_seconds"][name], row["rounds"][name], ratio(row, name))
            counts = (row["peak_bytes"].get(name), row.get("launches", {}).get(name))
            ceilings = (copy_speed(row, result), result.get("matmul_flops_per_second"))
            writer.writerow([*(row.get(key) for key in kept), *times, *counts, *ceilings])
    return out.getvalue()
