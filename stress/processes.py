"""Losses over the batch of two processes, by gloo: the value of the whole batch, and R times each one's gradient."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from genmod import nn

from .report import Outcome

PROCESSES = 2


def _loss(rng: random.Random) -> tuple[str, Callable[[Any], Callable[..., Any]], int]:
    """A random loss, as a function of the process group; and how many tensors it takes."""
    kind = rng.choice(("total correlation", "mmd", "dip"))
    if kind == "total correlation":
        size, estimator = rng.choice((64, 1000, 10**6)), rng.choice(("mss", "mws"))
        return kind, lambda group: nn.TotalCorrelation(size, estimator=estimator, process_group=group), 3
    if kind == "mmd":
        kernel, unbiased = rng.choice(("imq", "rbf")), rng.random() < 0.5
        return kind, lambda group: nn.MMD(kernel=kernel, unbiased=unbiased, process_group=group), 2
    which = rng.choice(("i", "ii"))
    return kind, lambda group: nn.DIP(kind=which, process_group=group), 2


def _total(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else sum(w * v for w, v in zip((1.0, 2.0, 3.0), value))


def _case(seed: str, rank: int, group: dist.ProcessGroup) -> str:
    """What is wrong with one random loss in this process; an empty string if nothing is."""
    rng = random.Random(seed)
    name, make, count = _loss(rng)
    rows, dims = rng.randint(1, 9), rng.randint(1, 7)
    dtype = rng.choice((torch.float32, torch.float64, torch.bfloat16))
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    whole = [
        torch.randn(rows * PROCESSES, dims, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)
    ]
    mine = [t[rank * rows : (rank + 1) * rows].clone().requires_grad_() for t in whole]
    whole = [t.requires_grad_() for t in whole]
    expected, found = _total(make(None)(*whole)), _total(make(group)(*mine))
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    what = f"{name}, [{rows}, {dims}], {dtype}, rank {rank}"
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
        return f"{what}: {found.item():g}, expected {expected.item():g}"
    theirs = torch.autograd.grad(expected, whole, allow_unused=True)
    ours = torch.autograd.grad(found, mine, allow_unused=True)
    for i, (a, b) in enumerate(zip(ours, theirs)):
        if a is None or b is None:
            if (a is None) != (b is None):
                return f"{what}: gradient {i} is None in one of both"
            continue
        b = PROCESSES * b[rank * rows : (rank + 1) * rows]
        scale = max(b.abs().max().item(), 1e-3)
        if not torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance * scale):
            return f"{what}: gradient {i} is off by {(a - b).abs().max().item():g}"
    return ""


def _process(rank: int, folder: str, seed: int, cases: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    try:
        wrong = [_case(f"{seed}/{i}", rank, dist.group.WORLD) for i in range(cases)]
    finally:
        dist.destroy_process_group()
    Path(folder, f"{rank}.txt").write_text("\n".join(w for w in wrong if w))


def run(cases: int, *, seed: int) -> Outcome:
    """So many random losses, each in both processes and against one process with the whole batch."""
    outcome = Outcome("processes", f"gloo, {PROCESSES} processes")
    with outcome, tempfile.TemporaryDirectory() as folder:
        try:
            mp.spawn(_process, (folder, seed, cases), nprocs=PROCESSES)
        except Exception as error:
            outcome.fail(f"{type(error).__name__}: {error}"[:800])
            return outcome
        outcome.cases = cases * PROCESSES
        for rank in range(PROCESSES):
            for line in Path(folder, f"{rank}.txt").read_text().splitlines():
                outcome.fail(line)
    return outcome
