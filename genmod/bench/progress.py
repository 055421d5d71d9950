"""What a run tells while it goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Progress(NamedTuple):
    """`total(n)` once, `now(text)` at each thing begun, `done()` at its end, and each `row(row)` as it is measured."""

    total: Callable[[int], None] = lambda count: None
    now: Callable[[str], None] = lambda text: None
    done: Callable[[], None] = lambda: None
    row: Callable[[dict[str, Any]], None] = lambda row: None
