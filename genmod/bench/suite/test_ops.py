"""Each op, on each workload, in each mode."""

from __future__ import annotations

from collections.abc import Callable

from genmod.bench.cases import Case
from genmod.registry import OpSpec, Workload


def test_op(
    spec: OpSpec,
    workload: Workload,
    mode: str,
    gate: Callable[[OpSpec], None],
    case: Callable[[OpSpec, Workload, str], Case],
    race: Callable[[Case], None],
) -> None:
    gate(spec)
    race(case(spec, workload, mode))
