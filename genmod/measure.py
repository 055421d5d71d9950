"""Time and memory of calls, compared in one run: the clock of the benchmarks, of the demo and of `compare`."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

#: Seconds that one timed stretch of calls should last at least, so that the clock's own grain does not matter.
_STRETCH = 0.01
#: Seconds of a call from which on it does not matter what the one before it left in the caches and the allocator.
_LONG = 0.1


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    device: torch.device,
    *,
    rounds: int = 15,
    budget: float = 20.0,
    within: Mapping[str, Callable[[], contextlib.AbstractContextManager[Any]]] | None = None,
) -> dict[str, list[float]]:
    """Seconds per call of each contender, one value per round.

    The contenders take turns, forwards and backwards, so that a machine that speeds up or slows down does it to all of
    them: ratios of medians hold where absolute times do not. Each turn begins with a call that is not timed, unless
    calls are long: it finds the caches, and the allocator's free memory, as another contender left them. `rounds`
    shrinks, to no less than five, where all of them together would take more than `budget` seconds; one whose single
    call takes a fifth of that, and ten times as long as another's, is left out after two. `within` names contexts that
    some contenders run in; entering them is not timed.
    """
    within = within or {}

    def timed(name: str, repeat: int, untimed: bool = False) -> float:
        with within.get(name, contextlib.nullcontext)():
            if untimed:
                calls[name]()
            return _seconds(calls[name], repeat, device)

    for name in calls:
        timed(name, 1)
    once = {name: timed(name, 1) for name in calls}
    repeat = {name: max(1, round(_STRETCH / seconds)) for name, seconds in once.items()}
    short = {name for name, seconds in once.items() if seconds < _LONG}
    slow = {name for name, seconds in once.items() if seconds > max(budget / 5, 10 * min(once.values()))}
    one_round = sum(once[name] * (repeat[name] + (name in short)) for name in calls if name not in slow)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(max(5, min(rounds, int(budget / max(one_round, 1e-9))))):
        for name in list(calls) if turn % 2 else reversed(list(calls)):
            if turn < 2 or name not in slow:
                times[name].append(timed(name, repeat[name], name in short))
    return times


def _seconds(call: Callable[[], Any], repeat: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repeat


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; a CPU is never late."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most memory that PyTorch's allocator held during the call, beyond what it held before."""
    call()
    gc.collect()  # what earlier calls left in cycles would be released in the middle of this one, and count for it
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # On the CPU the allocator keeps no peak; the profiler's trace has each of its allocations and releases.
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _silent_stderr(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = peak = 0
    for _, size in sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"):
        held += size
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """The profiler's C++ part logs its start and stop to file descriptor 2, in the middle of other output."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


#: Operators that compute nothing: they make room, or look at what is there from another angle.
_MAKES_ROOM = ("empty", "empty_like", "empty_strided", "resize_", "set_")
_VIEWS = (
    *(
        "alias",
        "as_strided",
        "as_strided_",
        "chunk",
        "contiguous",
        "detach",
        "detach_",
        "expand",
        "expand_as",
        "flatten",
    ),
    *("narrow", "permute", "reshape", "select", "slice", "split", "squeeze", "t", "to", "transpose", "unbind"),
    *("unflatten", "unsqueeze", "view", "view_as", "_unsafe_view"),
)
_QUESTIONS = ("is_nonzero", "item", "_local_scalar_dense", "lift_fresh", "resolve_conj", "resolve_neg", "result_type")
_NO_WORK = frozenset(f"aten::{name}" for name in (*_MAKES_ROOM, *_VIEWS, *_QUESTIONS))


def launches(call: Callable[[], Any], device: torch.device) -> int:
    """How many kernels one call starts: on a GPU those that ran, on a CPU the operators with no other at work inside.

    Operators that only allocate or make views do not count. Code that `torch.compile` made for a CPU is no operator.
    """
    call()
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU, *([kinds.CUDA] if device.type == "cuda" else [])]
    with _silent_stderr(), torch.profiler.profile(activities=activities) as profile:
        call()
        synchronize(device)
    events = profile.events() or []
    if device.type == "cuda":
        return sum(e.device_type == torch.autograd.DeviceType.CUDA for e in events)
    return sum(_works(e) and not any(map(_works, _inside(e))) for e in events)


#: Calls that a profile of shares is of.
_PROFILED = 5
#: Parts of the names of operators that multiply: convolutions, matrix products, recurrent networks.
_PRODUCTS = ("conv", "addmm", "::mm", "bmm", "addmv", "::mv", "rnn", "gru", "lstm")


def products_share(call: Callable[[], Any], device: torch.device) -> float:
    """The part of a call's time that convolutions, ours too, matrix products and recurrent networks take.

    By the profiler, which adds its own time to every operator: a call of many small ones spends less on products in it
    than without. On a GPU the part of the kernels' time.
    """
    call()
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU, *([kinds.CUDA] if device.type == "cuda" else [])]
    with _silent_stderr(), torch.profiler.profile(activities=activities) as profile:
        for _ in range(_PROFILED):
            call()
        synchronize(device)
    times = {
        each.key: each.self_device_time_total if device.type == "cuda" else each.self_cpu_time_total
        for each in profile.key_averages()
    }
    owned = ((name, t) for name, t in times.items() if name.startswith(("aten::", "genmod::")))
    products = sum(t for name, t in owned if any(p in name for p in _PRODUCTS))
    return products / max(sum(times.values()), 1e-9)


def _works(event: Any) -> bool:
    return "::" in event.name and event.name not in _NO_WORK and not event.name.startswith("autograd::")


def _inside(event: Any) -> Iterator[Any]:
    for child in event.cpu_children:
        yield child
        yield from _inside(child)
