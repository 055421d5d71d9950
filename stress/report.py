"""What was tried, how often, and what failed."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: Of one part, how many failures are kept in full; the rest are only counted.
KEPT = 20


@dataclass
class Outcome:
    """One part's result: `cases` that ran, `refused` of them with a clean error, and what failed."""

    part: str
    name: str
    cases: int = 0
    refused: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    skipped: str = ""

    def fail(self, text: str) -> None:
        """Count a failure, and keep its text while there are few."""
        self.failed += 1
        if len(self.failures) < KEPT:
            self.failures.append(text)

    def __enter__(self) -> Outcome:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.perf_counter() - self._start


def environment() -> dict[str, Any]:
    """The machine and the versions that a report is about."""
    import torch

    import genmod
    from genmod import _native

    return {
        "date": time.strftime("%Y-%m-%d"),
        "genmod": genmod.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "instruction_set": _native.instruction_set(),
        "threads": torch.get_num_threads(),
    }


def table(outcomes: Iterable[Outcome]) -> str:
    """One line per outcome, then the sums."""
    rows = [
        (o.part, o.name, f"{o.cases:,}", f"{o.refused:,}", str(o.failed), o.skipped or f"{o.seconds:.0f} s")
        for o in outcomes
    ]
    totals = [sum(getattr(o, k) for o in outcomes) for k in ("cases", "refused", "failed", "seconds")]
    rows.append(("total", "", f"{totals[0]:,}", f"{totals[1]:,}", str(totals[2]), f"{totals[3]:.0f} s"))
    head = ("part", "what", "cases", "refused", "failed", "time")
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(6)]

    def line(row: tuple[str, ...]) -> str:
        left, right = row[:2], row[2:]
        cells = [c.ljust(w) for c, w in zip(left, widths)] + [c.rjust(w) for c, w in zip(right, widths[2:])]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), line(tuple("-" * w for w in widths)), *map(line, rows)])


def save(path: Path, outcomes: Iterable[Outcome], seed: int) -> None:
    """Everything as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(), "seed": seed, "outcomes": [asdict(o) for o in outcomes]}
    path.write_text(json.dumps(content, indent=2) + "\n")


def load(path: Path) -> tuple[list[Outcome], dict[str, Any]]:
    """A report's outcomes, and what it says of the machine and the versions."""
    content = json.loads(path.read_text())
    return [Outcome(**o) for o in content["outcomes"]], content["environment"]
