"""Ops in several threads at once, also while backends are forced and released; and in the workers of data loaders."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import genmod
from genmod import backends
from genmod.registry import OpSpec, Sample
from genmod.specs import specs
from genmod.testing import battery

from .report import Outcome

THREADS = 4


def _samples(every: int) -> Iterator[tuple[OpSpec, Sample]]:
    for number, spec in enumerate(specs().values()):
        for sample in itertools.islice(
            battery.samples(spec, torch.device("cpu"), torch.float32), number % every, None, every
        ):
            yield spec, sample


def _in_threads(work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def at_once(rounds: int, *, every: int = 2) -> Outcome:
    """Forward and backward of the same calls in every thread: each to the bits that one thread alone gives."""
    outcome = Outcome("threads", "calls at once")
    lock = threading.Lock()
    with outcome:
        calls = [(s, c, battery.values_and_grads(s.public, s, c)) for s, c in _samples(every)]

        def work(thread: int) -> None:
            for n in range(rounds * len(calls)):
                spec, sample, expected = calls[(n + thread * len(calls) // THREADS) % len(calls)]
                wrong = _compare(spec, sample, expected, exact=spec.any_threads)
                with lock:
                    outcome.cases += 1
                    if wrong:
                        outcome.fail(f"{spec.name}, {sample.name}: {wrong}")

        _in_threads(work)
    return outcome


def while_forced(rounds: int, *, every: int = 4) -> Outcome:
    """Threads that open and close contexts of different backends around their calls, in no order; none stays forced."""
    outcome = Outcome("threads", "different backends forced")
    names = [s.name for s in backends.status() if s.available and s.name in ("reference", "cpp")]
    lock = threading.Lock()
    with outcome:
        calls = [(s, c, battery.values_and_grads(s.public, s, c)) for s, c in _samples(every)]

        def work(thread: int) -> None:
            for n in range(rounds * len(calls)):
                spec, sample, expected = calls[(n + thread * len(calls) // THREADS) % len(calls)]
                with genmod.backend(names[(n + thread) % len(names)]):
                    wrong = _compare(spec, sample, expected, exact=False)
                with lock:
                    outcome.cases += 1
                    if wrong:
                        outcome.fail(f"{spec.name}, {sample.name}: {wrong}")

        _in_threads(work)
        if backends.forced() is not None:
            outcome.fail(f"{backends.forced()} is still forced when all contexts are closed")
        x = torch.zeros(2, 3)
        if "cpp" in names and genmod.explain(genmod.ops.reparameterize, x, x).backend != "cpp":
            outcome.fail("calls do not take C++ again when all contexts are closed")
    return outcome


def _compare(spec: OpSpec, sample: Sample, expected: list[Tensor], *, exact: bool) -> str:
    try:
        found = battery.values_and_grads(spec.public, spec, sample)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        if exact and not torch.equal(a.nan_to_num(nan=1.5), b.nan_to_num(nan=1.5)):
            return f"other bits in result {i}"
        scale = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 0.0
        if not torch.allclose(a, b, rtol=1e-3, atol=1e-4 * max(scale, 1.0), equal_nan=True):
            return f"result {i} differs"
    return ""


class Calls(Dataset[list[Tensor]]):
    """Item i is what call i gives; for a data loader, whose workers are processes."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.calls: list[tuple[OpSpec, Sample]] | None = None

    def __len__(self) -> int:
        return sum(1 for _ in _samples(self.every))

    def __getitem__(self, index: int) -> list[Tensor]:
        self.calls = self.calls or list(_samples(self.every))
        spec, sample = self.calls[index]
        return [t.clone() for t in battery.values_and_grads(spec.public, spec, sample)]

    def __getstate__(self) -> dict[str, Any]:
        return {"every": self.every, "calls": None}  # functions do not pickle; a spawned worker makes its own


def loaders(method: str, *, every: int = 6, epochs: int = 1) -> Outcome:
    """Two workers, forked or spawned, of a process that has used the ops on all threads before."""
    outcome = Outcome("data loaders", method)
    with outcome, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's, of forking a process with threads: that is the point
        data = Calls(every)
        calls = list(_samples(every))
        expected = [data[i] for i in range(len(calls))]
        loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=method, timeout=120)
        for _ in range(epochs):
            try:
                for (spec, sample), mine, theirs in zip(calls, expected, loader, strict=True):
                    outcome.cases += 1
                    same = all(torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in zip(mine, theirs))
                    if not same:
                        outcome.fail(f"{spec.name}, {sample.name}: other results in a worker")
            except Exception as error:
                outcome.fail(f"{type(error).__name__}: {error}")
    return outcome
