"""Runs cases in a child process, so that one that kills it or never ends is a counted failure and not the end."""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple


class Died(NamedTuple):
    """A case that took its process with it."""

    index: int
    why: str


#: What a case is to return: "ok", "refused", or a description of what is wrong.
Case = Callable[[int], str]


def run(case: Case, count: int, *, seconds_per_case: float = 60.0) -> tuple[dict[int, str], list[Died]]:
    """Call `case(0)` to `case(count - 1)` in children of this process, a new one after each that dies.

    The parent must not have used more than one thread of torch before: their pool does not survive a fork.
    """
    results: dict[int, str] = {}
    died: list[Died] = []
    start = 0
    while start < count:
        reached, why = _batch(case, start, count, results, seconds_per_case)
        if not why:
            break
        died.append(Died(reached, why))
        start = reached + 1
    return results, died


def _batch(case: Case, start: int, count: int, results: dict[int, str], limit: float) -> tuple[int, str]:
    """One child; returns the last case that it began and why it died, or an empty string if it finished."""
    read, write = os.pipe()
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            os.close(read)
            os.dup2(errors.fileno(), 2)
            _child(case, start, count, write)
        os.close(write)
        reached, status, hung = _watch(child, read, start, results, limit)
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if hung:
        return reached, f"no end after {limit:.0f} s: {_telling(said)}"
    if status == 0:
        return reached, ""
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
    return reached, f"{how}: {_telling(said)}"


def _child(case: Case, start: int, count: int, write: int) -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    status = 1
    try:
        for index in range(start, count):
            os.write(write, f"{index}\n".encode())
            os.write(write, (json.dumps([index, case(index)]) + "\n").encode())
        status = 0
    finally:
        os._exit(status)  # without the parent's clean-up


def _watch(child: int, read: int, start: int, results: dict[int, str], limit: float) -> tuple[int, int, bool]:
    reached, rest, hung, last = start, b"", False, time.monotonic()
    while True:
        ready, _, _ = select.select([read], [], [], 1.0)
        if ready:
            data = os.read(read, 1 << 16)
            if not data:
                break
            last = time.monotonic()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if isinstance(message, int):
                    reached = message
                else:
                    results[message[0]] = message[1]
        elif time.monotonic() - last > limit:
            os.kill(child, signal.SIGUSR1)  # says where it is
            time.sleep(1)
            os.kill(child, signal.SIGKILL)
            hung = True
            break
    os.close(read)
    return reached, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), hung


def _telling(errors: str) -> str:
    """The lines of a sanitizer's report, or of a traceback, that say what happened and where in our sources."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    telling = [line for line in lines if "ERROR:" in line or "runtime error" in line or "Assertion" in line]
    ours = [line for line in lines if "csrc/" in line and line.startswith("#")]
    return " | ".join([*telling[:2], *ours[:4]] or lines[-3:])[:800]
