"""A training run that is killed at random moments and goes on with --resume: nothing may be lost.

`genmod train` runs in a forked child, which SIGKILL ends after a random time, in the middle of a step, of a checkpoint
or of the clean-up. After each: the newest checkpoint is whole, and is never older than the one before. At the end:
weights and curve have the bits of a run that nobody touched.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import torch

from .report import Outcome

STEPS, SAVE_EVERY = 60, 3


def _train(out: Path, *options: str) -> int:
    """Start `genmod train` in a child process; returns its id."""
    command = ["train", "vae", "--data", "digits", "--batch", "16", "--steps", str(STEPS), "--save-every"]
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        from genmod.cli import main

        log = (out.parent / "log.txt").open("a")
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        status = main([*command, str(SAVE_EVERY), "--no-metrics", "--out", str(out), *options])
    finally:
        os._exit(status)


def _wait(child: int, seconds: float = 300.0) -> int | None:
    """The child's exit code; None if it takes longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def _newest(out: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """The step of the newest checkpoint, 0 if there is none, and all its tensors; raises what a damaged file raises."""
    from safetensors.torch import load_file

    from genmod.recipes.checkpoint import Checkpoints

    folder = Checkpoints(out / "checkpoints").latest()
    if folder is None:
        return 0, {}
    files = sorted(folder.rglob("*.safetensors"))
    return int(folder.name[5:]), {f"{f.name}:{k}": t for f in files for k, t in load_file(f).items()}


def _differences(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    keys = found.keys() | expected.keys()
    return [k for k in sorted(keys) if k not in found or k not in expected or not torch.equal(found[k], expected[k])]


def run(kills: int, *, seed: int) -> Outcome:
    """Kill so often; a run that ends before that is compared and followed by another one."""
    outcome, rng = Outcome("resume", "kill -9 at random moments"), random.Random(seed)
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    with outcome, tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module("genmod.recipes.train")  # once, before all forks
        start = time.monotonic()
        untouched = Path(folder, "untouched")
        if _wait(_train(untouched)) != 0:
            outcome.fail(Path(folder, "log.txt").read_text()[-800:])
            return outcome
        whole, (_, expected) = time.monotonic() - start, _newest(untouched)
        number = 0
        while outcome.cases < kills and not outcome.failed:
            number += 1
            _one_run(Path(folder, str(number)), kills, whole, rng, expected, outcome)
    return outcome


def _one_run(
    out: Path, kills: int, whole: float, rng: random.Random, expected: dict[str, torch.Tensor], outcome: Outcome
) -> None:
    reached = 0
    while True:
        child = _train(out, "--resume")
        enough = outcome.cases >= kills
        code = _wait(child, 300.0 if enough else rng.uniform(0.0, 0.4) * whole)
        if code is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            outcome.cases += 1
        elif code != 0:
            return outcome.fail(f"ended with {code}: {(out.parent / 'log.txt').read_text()[-800:]}")
        try:
            step, tensors = _newest(out)
        except Exception as error:
            return outcome.fail(f"after a kill, the newest checkpoint is damaged: {error}")
        if step < reached:
            return outcome.fail(f"after a kill, the newest checkpoint is step {step}; there was one of step {reached}")
        reached = step
        if code == 0:
            for key in _differences(tensors, expected):
                outcome.fail(f"{key} differs from the run that nobody killed")
            return None
