"""What `python -m stress` runs, how many cases of each, and in what kind of process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .report import Outcome


@dataclass(frozen=True)
class Part:
    """A part of the battery.

    Attributes:
        about: one line.
        items: each gives one outcome; one that kills the process does not take the others with it.
        run: `(item, scale, seed)`; at scale 1 as many cases as `make stress` runs.
        sanitized: whether it runs on the build with sanitizers, a process of its own.
    """

    about: str
    items: Callable[[], tuple[str, ...]]
    run: Callable[[str, float, int], Outcome]
    sanitized: bool = False


def _count(cases: int, scale: float) -> int:
    return max(1, round(cases * scale))


def _ops() -> tuple[str, ...]:
    from .properties import names

    return names()


def _properties(item: str, scale: float, seed: int) -> Outcome:
    from . import properties

    return properties.run(item, _count(240, scale), seed_=seed)


def _entry_points(item: str, scale: float, seed: int) -> Outcome:
    from . import entry_points

    return entry_points.run(seed, _count(3000, scale), huge=True, name=item)


def _sanitized(item: str, scale: float, seed: int) -> Outcome:
    from . import entry_points

    # A sanitizer ends the process where an allocation is larger than any memory, instead of letting it fail.
    return entry_points.run(seed + 1, _count(3000, scale), huge=False, name=item)


def _models(item: str, scale: float, seed: int) -> Outcome:
    from . import models

    return models.run(_count(1000, scale), seed=seed)


def _resume(item: str, scale: float, seed: int) -> Outcome:
    from . import resume

    return resume.run(_count(50, scale), seed=seed)


def _threads(item: str, scale: float, seed: int) -> Outcome:
    from . import concurrency

    if item == "at once":
        return concurrency.at_once(1, every=_count(2, 1 / scale))
    if item == "forced":
        return concurrency.while_forced(1, every=_count(8, 1 / scale))
    return concurrency.loaders(item, every=_count(4, 1 / scale))


def _processes(item: str, scale: float, seed: int) -> Outcome:
    from . import processes

    return processes.run(_count(200, scale), seed=seed)


PARTS = {
    "properties": Part("random calls of every public op against the reference", _ops, _properties),
    "entry-points": Part("malformed tensors into C++", lambda: ("installed build",), _entry_points),
    "sanitized": Part("the same on ASan and UBSan", lambda: ("ASan and UBSan",), _sanitized, sanitized=True),
    "models": Part("random models through accelerate and restore", lambda: ("accelerate",), _models),
    "resume": Part("kill and resume a training run", lambda: ("kill -9",), _resume),
    "threads": Part(
        "threads at once, backends forced, data loaders", lambda: ("at once", "forced", "fork", "spawn"), _threads
    ),
    "processes": Part("two processes by gloo", lambda: ("gloo",), _processes),
}
