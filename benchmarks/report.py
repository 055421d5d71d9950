"""Tables of results, for the terminal and for Markdown: ratios, bandwidth against a copy, memory."""

from __future__ import annotations

from typing import Any

COLUMNS = ("op", "workload", "mode", "genmod", "x eager", "x compile", "reference", "GB/s", "of copy", "peak memory")


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table's cells, one list per measured case."""
    return [_cells(row, result) for row in result["rows"]]


def _cells(row: dict[str, Any], result: dict[str, Any]) -> list[str]:
    median = row["median_seconds"]
    ours = median["genmod"]

    def ratio(name: str) -> str:
        return f"{median[name] / ours:.2f}" if name in median else "-"

    rate, copy = row["bytes_moved"] / ours, result["copy_bytes_per_second"].get(row["workload"])
    memory = row["peak_bytes"]
    share = f"{memory['genmod'] / memory['eager']:.2f}x eager" if memory["eager"] else "-"
    return [
        row["op"],
        row["workload"],
        row["mode"],
        f"{ours * 1e6:,.0f} us",
        ratio("eager"),
        ratio("compile"),
        ratio("genmod:reference"),
        f"{rate / 1e9:.1f}" if rate else "-",
        f"{100 * rate / copy:.0f} %" if copy and row["mode"] != "double backward" else "-",
        f"{memory['genmod'] / 2**20:.1f} MiB, {share}",
    ]


def markdown(result: dict[str, Any]) -> str:
    """A Markdown table with its heading."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows(result)]
    return "\n".join(lines)


def heading(result: dict[str, Any]) -> str:
    """Where and with what it was measured, in one line."""
    machine = result["machine"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads, {machine['instruction_set']}"
    return f"{where}; torch {machine['torch']}, {result['dtype']}, commit {machine['commit'][:10]}, {machine['date']}"
