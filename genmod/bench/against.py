"""This genmod against another git revision of it: both built, both alive, taking turns, and the noise told apart.

The other revision is checked out into a temporary worktree and its C++ part built there, from the objects that this
checkout has already where the sources are the same. Two processes then hold one revision each and time a stretch of
calls in turns, so that a machine that slows down slows both. What changed is the median of the rounds' ratios, with a
bootstrap interval; a change that the interval cannot tell from one is called noise.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from genmod.bench import machine, report
from genmod.bench.progress import Progress
from genmod.bench.runner import check
from genmod.bench.suites import workloads
from genmod.registry import OpSpec

COLUMNS = ("op", "workload", "mode", "before", "now", "before / now", "interval", "verdict")
#: A change below this is not worth a word, even if it could be told from noise.
WORTH = 0.02


class CannotCompare(Exception):
    """No checkout, no such revision, or one that does not build. The message says what to do."""


def run(
    chosen: Sequence[OpSpec],
    revision: str,
    suite: str,
    device: torch.device,
    dtype: str,
    modes: tuple[str, ...],
    name: str,
    rounds: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """One row per op, workload and mode that both revisions have. Raises `CannotCompare`."""
    plan = [(s.name, w.name, m) for s in chosen for w in workloads(s, suite, name, device.type) for m in modes]
    progress.total(1 + len(plan))
    progress.now(f"building {revision}")
    with built(revision) as root, worker(root) as before, worker(root_of_this()) as now:
        progress.done()
        for spec in chosen:
            check(spec, device, getattr(torch, dtype))
        rows = []
        for op, workload, mode in plan:
            progress.now(f"{op}, {workload}, {mode}")
            case = {"op": op, "workload": workload, "mode": mode, "device": str(device), "dtype": dtype}
            times = race(before, now, case, rounds)
            if times is not None:
                rows.append(case | {"seconds": times} | change(times["before"], times["now"]))
            progress.done()
    return rows


def root_of_this() -> Path:
    """The checkout that this genmod runs from."""
    root = machine.source_checkout()
    if root is None:
        raise CannotCompare("--against: genmod runs from an installed copy; run from a git checkout, installed with -e")
    return root


@contextlib.contextmanager
def built(revision: str) -> Iterator[Path]:
    """A worktree of the revision, with its C++ part built in place if this one has its own; gone afterwards."""
    root = root_of_this()
    commit = machine.git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if not commit:
        raise CannotCompare(f"--against: git knows no revision {revision!r}")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "genmod"
        _run(["git", "-C", str(root), "worktree", "add", "--detach", str(tree), commit], f"checking out {revision}")
        try:
            _build(root, tree, revision)
            yield tree
        finally:
            machine.git(root, "worktree", "remove", "--force", str(tree))


def _build(root: Path, tree: Path, revision: str) -> None:
    link = tree / "genmod" / "kernels"  # where an installed genmod has them
    if not link.exists():
        link.symlink_to(tree / "kernels")
    if not list((root / "genmod").glob("_C.*")):
        return  # this one is pure Python, and a fair comparison is between likes
    objects = Path("build") / "native"
    if (root / objects).is_dir():  # named by what went into them, so what is the same is not compiled again
        shutil.copytree(root / objects, tree / objects)
    _run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], f"building {revision}", tree)


def _run(command: list[str], what: str, folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotCompare(f"--against: {what} failed:\n{done.stderr.strip()[-2000:]}")


class Worker:
    """A process that holds one revision of genmod and times what it is told to."""

    def __init__(self, stdin: IO[str], stdout: IO[str]) -> None:
        self.stdin, self.stdout = stdin, stdout

    def ask(self, **question: Any) -> dict[str, Any]:
        """Send a question and wait for its answer."""
        self.stdin.write(json.dumps(question) + "\n")
        self.stdin.flush()
        line = self.stdout.readline()
        if not line:
            raise CannotCompare("--against: a measuring process ended; its message is above")
        return json.loads(line)


@contextlib.contextmanager
def worker(root: Path) -> Iterator[Worker]:
    """A process whose `import genmod` finds the one in `root`: the current folder comes first for code given by -c."""
    code = Path(__file__).with_name("worker.py").read_text()
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    try:
        yield Worker(process.stdin, process.stdout)
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def race(before: Worker, now: Worker, case: dict[str, Any], rounds: int) -> dict[str, list[float]] | None:
    """Seconds per call of both, one value per round; None if either lacks the case."""
    runners = {"before": before, "now": now}
    ready = {name: r.ask(prepare=case) for name, r in runners.items()}
    if not all(answer["ok"] for answer in ready.values()):
        return None
    repeat = max(1, round(0.005 / max(answer["seconds"] for answer in ready.values())))
    times: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(max(rounds, 9)):
        for name in list(runners) if turn % 2 else reversed(list(runners)):
            times[name].append(runners[name].ask(time=repeat)["seconds"])
    return times


def change(before: list[float], now: list[float], draws: int = 2000) -> dict[str, Any]:
    """The median ratio of paired rounds, its 95 % bootstrap interval, and what to make of it.

    Rounds are drawn anew as pairs, so that what slows both sides of a round cancels.
    """
    ratios = np.log(np.asarray(before) / np.asarray(now))
    chosen = np.random.default_rng(0).integers(0, len(ratios), (draws, len(ratios)))
    low, high = np.exp(np.quantile(np.median(ratios[chosen], axis=1), (0.025, 0.975)))
    ratio = float(np.exp(np.median(ratios)))
    told_apart = (low > 1 or high < 1) and abs(ratio - 1) >= WORTH
    verdict = ("faster" if ratio > 1 else "slower") if told_apart else "noise"
    return {"ratio": ratio, "interval": [float(low), float(high)], "verdict": verdict}


def cells(row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    before, now = (report.time(float(np.median(row["seconds"][k]))) for k in ("before", "now"))
    low, high = row["interval"]
    found = [f"{row['ratio']:.3f}", f"{low:.3f} to {high:.3f}", row["verdict"]]
    return [row["op"], row["workload"], row["mode"], before, now, *found]
