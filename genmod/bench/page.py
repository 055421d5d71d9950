"""One HTML page of result files: tables and pictures inside it, nothing fetched from anywhere."""

from __future__ import annotations

import html as escaping
import re
from collections.abc import Iterable, Sequence
from typing import Any

from genmod.bench import measurements, plots, report

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e5e5e5; text-align: right; white-space: nowrap; }
th.left, td.left, td.wide { text-align: left; white-space: normal; } td.wide { min-width: 14rem; }
thead th { border-bottom: 2px solid #999; }
figure { margin: 1.5rem 0; } svg { max-width: 100%; height: auto; }
.where, footer { color: #666; font-size: 13px; }
"""


def html(results: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The page of these results, each with its name."""
    names = [escaping.escape(name) for name, _ in results]
    contents = "".join(f'<li><a href="#result-{i}">{name}</a></li>' for i, name in enumerate(names))
    sections = "".join(_section(i, name, result) for i, (name, (_, result)) in enumerate(zip(names, results)))
    legend = "".join(
        f"<dt>{escaping.escape(k)}</dt><dd>{escaping.escape(v)}</dd>" for k, v in report.COLUMNS.items() if v
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>genmod benchmarks</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>genmod benchmarks</h1>"
        "<p>Medians of interleaved runs: all contenders took turns. Ratios of one run hold; times from another hour or "
        "machine need not.</p>"
        f"<ul>{contents}</ul>{sections}<footer><h2>Columns</h2><dl>{legend}</dl></footer></body></html>\n"
    )


def _section(number: int, name: str, result: dict[str, Any]) -> str:
    parts = [f'<section id="result-{number}"><h2>{name}</h2>']
    for heading, columns, rows in measurements.tables(result):
        parts += [f'<p class="where">{escaping.escape(heading)}</p>', _table(columns, rows)]
    parts += [f"<p>{escaping.escape(note)}</p>" for note in measurements.notes(result)]
    for key, figure in plots.figures(result).items():
        picture = _own_names(plots.svg(figure), f"r{number}-{key}-")
        parts.append(f"<figure>{picture}<figcaption>{escaping.escape(key.replace('_', ' '))}</figcaption></figure>")
    return "".join([*parts, "</section>"])


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(columns)
    kinds = [' class="left"' if c in (*report.LEFT, "shape", "verdict") else "" for c in columns]
    head = "".join(f"<th{k}>{escaping.escape(c)}</th>" for k, c in zip(kinds, columns))
    kinds = [' class="wide"' if c == "workload" else k for c, k in zip(columns, kinds)]
    body = "".join(
        f"<tr>{''.join(f'<td{k}>{escaping.escape(cell)}</td>' for k, cell in zip(kinds, cells))}</tr>" for cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _own_names(svg: str, prefix: str) -> str:
    """The picture with ids of its own: those of two pictures on one page would collide."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}\1"', svg)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", svg)
