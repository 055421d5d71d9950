"""The directive `genmod-family`: what the specs and docs/proven.md know of a family, as tables.

So a page never says what the code does not: derivatives, what is kept for the backward pass, what autocast does, how
exact the op is, its modules, and where its kernels have run.
"""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from genmod.registry import OpSpec
from genmod.specs import specs

DOCS = Path(__file__).parents[1]


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A list-table of reStructuredText, which holds any markup in its cells."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [header, *rows]:
        for number, cell in enumerate(row):
            lines.append(f"   {'*' if number == 0 else ' '} - {cell}")
    return [*lines, ""]


def error_rule(spec: OpSpec) -> str:
    """The bound that the battery holds the op to, in words."""
    rule = "twice eager's own error"
    if spec.reordering:
        rule += f", and {spec.reordering:g} roundings of the largest element (long sums in another order)"
    elif spec.magnitude(next(iter(_samples(spec)))) != (0.0, 0.0):
        rule += ", and a rounding of the largest term where terms cancel"
    return rule


def _samples(spec: OpSpec):
    import torch

    return spec.samples(torch.device("cpu"), torch.float64)


def proven() -> dict[str, list[str]]:
    """Op -> the cells of its row in docs/proven.md."""
    found = {}
    for line in (DOCS / "proven.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            found[cells[0].strip("`")] = cells[1:]
    return found


class Family(SphinxDirective):
    """`genmod-family:: NAME`, the family's tables."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        chosen = [spec for spec in specs().values() if spec.family == self.arguments[0]]
        if not chosen:
            raise self.error(f"genmod-family: got {self.arguments[0]!r}, expected a family of genmod.specs")
        what = [
            [
                f"``{spec.name}``",
                spec.summary,
                str(spec.gradient_order),
                "casts " + ", ".join(map(str, spec.autocasts)) if spec.autocasts else "left in its dtype",
                error_rule(spec),
                ", ".join(f"``{name}``" for name in spec.modules),
            ]
            for spec in chosen
        ]
        rows = proven()
        where = [[f"``{spec.name}``", *rows[spec.name]] for spec in chosen]
        lines = table(["op", "what it is", "derivatives", "under autocast", "error against float64", "modules"], what)
        lines += table(["op", "reference", "C++ (CPU)", "Triton", "CUDA C++", "chosen on a GPU"], where)
        holder = nodes.container()
        self.state.nested_parse(_as_rst(lines, self), self.content_offset, holder)
        return list(holder.children)


def _as_rst(lines: list[str], directive: SphinxDirective) -> StringList:
    return StringList(lines, source=directive.get_source_info()[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_directive("genmod-family", Family)
    return {"parallel_read_safe": True}
