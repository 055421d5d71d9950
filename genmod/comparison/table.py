"""A comparison as text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genmod.comparison.result import Comparison, Difference

#: Of each kind so many rows are shown, those with the largest errors.
_ROWS = 3


def render(comparison: Comparison) -> str:
    """The table that `print(comparison)` shows."""
    return "\n".join([*_head(comparison), "", *_errors(comparison), "", *_speeds(comparison), *_notes(comparison)])


def _head(c: Comparison) -> list[str]:
    threads = f", {c.versions['threads']} threads" if c.device == "cpu" else ""
    return [
        f"{c.model} on {c.device}, {c.dtype}, {c.mode}, inputs {', '.join(c.inputs)}",
        f"torch {c.versions['torch']}, genmod {c.versions['genmod']}{threads}; errors against {c.reference}",
    ]


def _errors(c: Comparison) -> list[str]:
    rows: list[tuple[str, ...]] = [("", "", "largest error", "stock's", "relative", "stock's", "")]
    for kind in dict.fromkeys(d.kind for d in c.differences):
        of_kind = sorted((d for d in c.differences if d.kind == kind), key=_badness, reverse=True)
        rows += [_error_row(d, c.dtype) for d in of_kind[:_ROWS]]
        if len(of_kind) > _ROWS:
            rest = "all within the bound" if all(d.within(c.dtype) for d in of_kind[_ROWS:]) else "some OUTSIDE"
            rows.append((kind, f"{len(of_kind) - _ROWS} more", "", "", "", "", rest))
    return _aligned(rows, left=(0, 1, 6))


def _badness(d: Difference) -> tuple[bool, float]:
    return bool(d.missing), d.largest - 2 * d.largest_stock


def _error_row(d: Difference, dtype: str) -> tuple[str, ...]:
    if d.missing:
        return d.kind, d.name, "", "", "", "", d.missing
    verdict = "bit-equal" if d.bit_equal else "within the bound" if d.within(dtype) else "OUTSIDE THE BOUND"
    numbers = (d.largest, d.largest_stock, d.relative, d.relative_stock)
    return d.kind, d.name, *(f"{number:.1e}" for number in numbers), verdict


def _speeds(c: Comparison) -> list[str]:
    if not c.speeds:
        return ["not timed"]
    rows: list[tuple[str, ...]] = [("", "", "time", "spread", "takes", "peak memory", "takes")]
    for s in c.speeds:
        ours = s.contender == "genmod"
        time_ratio, memory_ratio = ("", "") if ours else (_ratio(s.time_ratio), _ratio(s.memory_ratio))
        row = (s.mode, s.contender, _time(s.seconds), f"{s.spread:.0%}", time_ratio, _bytes(s.peak_bytes), memory_ratio)
        rows.append(row)
    return _aligned(rows, left=(0, 1))


def _notes(c: Comparison) -> list[str]:
    notes = []
    if c.compile_error:
        notes.append(f"torch.compile of the original failed: {c.compile_error}")
    if c.random:
        notes.append("The model draws noise: errors are with the same noise for all, times with each one's own.")
    if c.outside:
        notes.append(f"NOT THE SAME MODEL: {len(c.outside)} of {len(c.differences)} outside the bound.")
    return ["", *notes] if notes else []


def _ratio(value: float) -> str:
    return f"{value:.2f}x" if math.isfinite(value) else "-"


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:,.2f} ms"


def _bytes(count: int) -> str:
    return f"{count / 2**20:,.2f} MiB"


def _aligned(rows: list[tuple[str, ...]], left: tuple[int, ...]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
