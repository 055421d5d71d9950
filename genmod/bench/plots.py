"""Pictures of results: bars against the baselines, the roofline, scaling curves, changes since another revision."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genmod.bench import report
from genmod.recipes import need

Result = dict[str, Any]

_COLOURS = {
    "eager": "#9a9a9a",
    "eager:channels_last": "#cfcfcf",
    "compile": "#3b6fb6",
    "compile:max-autotune": "#7fa6d9",
    "compile:channels_last": "#b3cbe8",
    "genmod": "#d1495b",
}
_PEER = "#5b8c5a"


def figures(result: Result) -> dict[str, Any]:
    """File name (without ending) -> matplotlib figure, whatever this kind of result can show."""
    makers: dict[str, dict[str, Callable[[Result], Any]]] = {
        "ops": {"ratios": ratios, "roofline": roofline},
        "scaling": {f"scaling_{result.get('axis')}": scaling},
        "against": {"against": against},
        "overhead": {"overhead": overhead},
    }
    made = {name: make(result) for name, make in makers[result.get("kind", "ops")].items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def save(result: Result, folder: Path) -> list[Path]:
    """Write each figure as PNG and SVG; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in figures(result).items():
        for ending in ("png", "svg"):
            files.append(folder / f"{name}.{ending}")
            figure.savefig(files[-1], dpi=130)
    return files


def svg(figure: Any) -> str:
    """The picture as an <svg> element, without prologue, metadata or anything from elsewhere."""
    out = io.StringIO()
    with need("matplotlib").rc_context({"svg.fonttype": "none", "svg.hashsalt": "genmod"}):
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = out.getvalue()
    return text[text.index("<svg") :]


def _figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    figure = need("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _label(row: dict[str, Any]) -> str:
    return f"{row['op']}, {row['workload']}\n{row['mode']}"


def _colour(name: str) -> str:
    return _PEER if name.startswith("peer:") else _COLOURS.get(name, "#c9a227")


def ratios(result: Result) -> Any:
    """How many times longer each baseline takes than genmod, with the quartiles; left of the line genmod loses."""
    rows = result["rows"][::-1]
    bars = [[n for n in row["median_seconds"] if n != "genmod" and not n.startswith("genmod:")] for row in rows]
    figure, ((axes,),) = _figure(9, 1.2 + 0.2 * sum(len(b) + 1 for b in bars))
    y, ticks, named = 0.0, [], set()
    for row, names in zip(rows, bars):
        ours, start = row["median_seconds"]["genmod"], y
        for name in reversed(names):
            median, (low, high) = row["median_seconds"][name], row["quartiles_seconds"][name]
            shown = "peer" if name.startswith("peer:") else name
            label = None if shown in named else {"peer": "other packages"}.get(shown, shown)
            named.add(shown)
            spread = [[(median - low) / ours], [(high - median) / ours]]
            # From one on, in either direction: the bar's length is what is gained or lost.
            axes.barh(y, median / ours - 1, left=1, height=0.9, color=_colour(name), label=label)
            axes.errorbar(median / ours, y, xerr=spread, color="black", linewidth=0.8)
            y += 1
        ticks.append((start + (y - start - 1) / 2, _label(row)))
        y += 0.8
    axes.set_xscale("log")
    axes.axvline(1, color=_COLOURS["genmod"], linewidth=1.5)
    axes.set_yticks([t for t, _ in ticks], [name for _, name in ticks], fontsize=7)
    axes.set_ylim(-1, y)
    axes.set_xlabel("time / genmod's time (right of 1: genmod is faster)")
    _plain_ticks(axes)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper right", ncols=4, fontsize=8, frameon=False)
    return figure


def _plain_ticks(axes: Any) -> None:
    """Few numbers along a logarithmic axis, without powers of ten, however short it is."""
    ticker = need("matplotlib.ticker")
    low, high = axes.get_xlim()
    short = high < 8 * low
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6) if short else ticker.LogLocator(subs=(1, 2, 5), numticks=12))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())


def roofline(result: Result) -> Any:
    """Operations per second over operations per byte, under what copy and matrix product allow; None without them."""
    peak = result.get("matmul_flops_per_second")
    rows = [row for row in result["rows"] if report.roofline(row, result) is not None and row["flops"]]
    if not peak or not rows:
        return None
    figure, ((axes,),) = _figure(8, 5.5)
    copies = sorted(report.copy_speed(row, result) or 0.0 for row in rows)
    intensities = [row["flops"] / row["bytes_moved"] for row in rows]
    low, high = min(0.1, min(intensities) / 2), max(max(intensities), peak / copies[0]) * 2
    for copy, style in ((copies[0], ":"), (copies[len(copies) // 2], "-"), (copies[-1], ":")):
        points = [low, peak / copy, high]
        axes.plot(points, [copy * low / 1e9, peak / 1e9, peak / 1e9], style, color="#555555", linewidth=1)
    numbers = {op: i for i, op in enumerate(dict.fromkeys(row["op"] for row in rows))}
    colours = need("matplotlib").colormaps["tab20"]
    named = set()
    for row, intensity in zip(rows, intensities):
        op, marker = row["op"], "o" if row["mode"] == "forward" else "s"
        label = None if op in named else op
        named.add(op)
        speed = row["flops"] / row["median_seconds"]["genmod"] / 1e9
        axes.plot(intensity, speed, marker, color=colours(numbers[op] % 20), label=label, markersize=6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte of an ideal kernel (circles: forward, squares: with backward)")
    axes.set_ylabel("GFLOP/s")
    axes.set_title("genmod under this machine's copies (slowest, median, fastest) and matrix product", fontsize=9)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    return figure


def scaling(result: Result) -> Any:
    """Time and peak memory over the size, for each op."""
    ops = list(dict.fromkeys(row["op"] for row in result["rows"]))
    figure, grid = _figure(9, 2.8 * len(ops), columns=2, rows=len(ops))
    for op, (time, memory) in zip(ops, grid):
        rows = [row for row in result["rows"] if row["op"] == op]
        sizes = [row["size"] for row in rows]
        for name in ("eager", "genmod"):
            seconds = [1e3 * row["median_seconds"][name] for row in rows]
            low, high = ([1e3 * row["quartiles_seconds"][name][i] for row in rows] for i in (0, 1))
            time.plot(sizes, seconds, "o-", color=_colour(name), label=name, markersize=3)
            time.fill_between(sizes, low, high, color=_colour(name), alpha=0.2, linewidth=0)
            mebibytes = [max(row["peak_bytes"][name], 1) / 2**20 for row in rows]
            memory.plot(sizes, mebibytes, "o-", color=_colour(name), label=name, markersize=3)
        for axes, what in ((time, "ms, forward+backward"), (memory, "MiB at most")):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xlabel(result["axis"])
            axes.set_ylabel(what)
            axes.set_title(op, fontsize=9)
            axes.grid(alpha=0.3)
        time.legend(frameon=False, fontsize=8)
    return figure


def against(result: Result) -> Any:
    """The ratio of times before and now, with its interval; grey where it cannot be told from noise."""
    rows = result["rows"][::-1]
    figure, ((axes,),) = _figure(8, 1.2 + 0.35 * len(rows))
    colours = {"faster": "#5b8c5a", "slower": "#d1495b", "noise": "#9a9a9a"}
    for y, row in enumerate(rows):
        low, high = row["interval"]
        axes.plot([low, high], [y, y], color=colours[row["verdict"]], linewidth=2)
        axes.plot(row["ratio"], y, "o", color=colours[row["verdict"]])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=7)
    axes.set_xlabel(f"time at {result['revision']} / time now (right of 1: faster now)")
    axes.grid(axis="x", alpha=0.3)
    return figure


def overhead(result: Result) -> Any:
    """What a call costs over its kernels, without and with gradients to come."""
    rows = result["rows"][::-1]
    figure, ((axes,),) = _figure(8, 1.2 + 0.3 * len(rows))
    for shift, name, colour in ((0.2, "op", "#3b6fb6"), (-0.2, "op in training", "#d1495b")):
        micro = [1e6 * (row["median_seconds"][name] - row["median_seconds"]["kernel"]) for row in rows]
        axes.barh([y + shift for y in range(len(rows))], micro, height=0.4, color=colour, label=name)
    axes.set_yticks(range(len(rows)), [row["op"] for row in rows], fontsize=8)
    axes.set_xlabel("µs of a call beyond its kernels")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False)
    return figure
