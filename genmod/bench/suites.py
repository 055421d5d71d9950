"""What to run: `quick` in minutes, `full` for everything about every op, `models` for whole training steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from genmod.bench.cases import MODES
from genmod.registry import OpSpec, Workload

#: Below both, a call's time is the cost of calling, and says little about the op.
_INFORMATIVE_BYTES, _INFORMATIVE_FLOPS = 1 << 18, 1 << 22


@dataclass(frozen=True)
class Suite:
    """How thorough a run is.

    Attributes:
        summary: for the command line.
        modes: which of `MODES` an op is timed in; none for training steps.
        rounds: how many times each contender is timed, at least.
        budget: seconds that one case may take before it makes do with fewer rounds, of which five remain.
        compiled: the modes in which `torch.compile` takes part; its compiler takes longer than all the rest.
    """

    summary: str
    modes: tuple[str, ...]
    rounds: int
    budget: float
    compiled: tuple[str, ...] = MODES[:2]


SUITES = {
    "quick": Suite(
        "each op's smallest informative workload, forward and forward+backward", MODES[:2], 9, 1.0, MODES[1:2]
    ),
    "full": Suite("every workload of every op, to the second derivative", MODES, 15, 20.0),
    "models": Suite("training steps of whole models", (), 15, 20.0),
}


def workloads(spec: OpSpec, suite: str, name: str = "", device: str = "cpu") -> Iterator[Workload]:
    """Those whose name contains `name`; in the quick suite the smallest of these that tells more than calling does."""
    all_of_them = spec.workloads + (spec.gpu_workloads if device == "cuda" else ())
    found: Iterable[Workload] = [w for w in all_of_them if name in w.name]
    if suite == "quick" and found:
        found = [_smallest_informative(spec, list(found))]
    yield from found


def _smallest_informative(spec: OpSpec, found: list[Workload]) -> Workload:
    sizes = {}
    for workload in found:
        sample = workload.make(torch.device("cpu"), torch.float32)
        sizes[workload.name] = spec.bytes_moved(sample, False), spec.flops(sample, False)
    big = [w for w in found if sizes[w.name][0] >= _INFORMATIVE_BYTES or sizes[w.name][1] >= _INFORMATIVE_FLOPS]
    return min(big, key=lambda w: sizes[w.name]) if big else max(found, key=lambda w: sizes[w.name])
