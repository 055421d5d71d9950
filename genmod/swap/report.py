"""What was swapped and what was not, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Swap:
    """One place where something faster stands now.

    Attributes:
        path: of the module in the model; of a run in an `nn.Sequential`, its first and last position.
        pattern: name of the entry in the table of patterns.
        was, became: in words.
        exactness: "bit-equal", "reassociated" or "same distribution".
        bound: of the error.
        gain: how many times as fast, as measured for that device, dtype and mode; None where nobody measured it.
    """

    path: str
    pattern: str
    was: str
    became: str
    exactness: str
    bound: str
    gain: float | None


@dataclass(frozen=True)
class LeftAlone:
    """One place that looked like a pattern, and why nothing was done there."""

    path: str
    what: str
    why: str


@dataclass
class SwapReport:
    """What :func:`genmod.accelerate` did: `print` it, iterate over its swaps, or take `to_dict()` and `to_json()`.

    Attributes:
        swaps: what was replaced.
        left_alone: what was not, and why.
        note: what holds for the whole model, such as that there was nothing to swap; may be empty.
    """

    swaps: list[Swap] = field(default_factory=list)
    left_alone: list[LeftAlone] = field(default_factory=list)
    note: str = ""

    def __iter__(self) -> Iterator[Swap]:
        return iter(self.swaps)

    def __len__(self) -> int:
        return len(self.swaps)

    def __bool__(self) -> bool:
        return True  # a report of nothing is a report

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and numbers."""
        return asdict(self)

    def to_json(self, **options: Any) -> str:
        """`to_dict` as JSON; options are those of `json.dumps`."""
        return json.dumps(self.to_dict(), **options)

    def __str__(self) -> str:
        blocks = [self.note] if self.note else []
        if self.swaps:
            rows = [(s.path, s.was, s.became, f"{s.exactness}: {s.bound}", _times(s.gain)) for s in self.swaps]
            blocks.append(_table(("module", "was", "became", "exactness", "predicted"), rows))
        if self.left_alone:
            why = [(entry.path, entry.what, entry.why) for entry in self.left_alone]
            blocks.append(_table(("left alone", "what", "why"), why))
        return "\n\n".join(blocks)


def _times(gain: float | None) -> str:
    return "not measured" if gain is None else f"{gain:.2f}x"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, tuple("-" * width for width in widths), *rows]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
