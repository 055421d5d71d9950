"""Each part of the reliability battery, small; `make stress` runs it at full size, on a sanitized build too."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genmod import ops
from stress import calls, concurrency, malformed, models, processes, properties
from stress.parts import PARTS
from stress.report import Outcome, save, table

ROOT = Path(__file__).parents[2]


def passed(outcome: Outcome, least: int) -> None:
    assert outcome.failed == 0, "\n".join(outcome.failures)
    assert outcome.cases >= least


def test_every_public_op_has_a_random_call():
    missing = [name for name in ops.__all__ if name not in calls.CALLS]
    assert not missing, f"no random call in stress/calls.py of {', '.join(missing)}"
    assert set(calls.CALLS) <= set(ops.__all__)
    for name in ops.__all__:
        properties.target(name)  # raises if nothing to hold it against is known


@pytest.mark.parametrize("name", ops.__all__)
def test_properties(name: str):
    passed(properties.run(name, 8, seed_=11), 8)


def test_a_wrong_op_is_noticed(monkeypatch: pytest.MonkeyPatch):
    goal = properties.target("mse")
    broken = lambda *args, **kwargs: ops.mse(*args, **kwargs) * 1.001  # noqa: E731
    fields = {**vars(goal), "public": broken, "reference": ops.mse}
    monkeypatch.setattr(properties, "target", lambda name: properties.Target(**fields))
    outcome = properties.run("mse", 30, seed_=11)
    assert outcome.failed and "float64 says" in outcome.failures[0]


def test_a_wrong_norm_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """The bound, which takes the sizes of terms that cancel into account, is not loose."""
    goal = properties.target("group_norm_act")

    def broken(x, groups, weight=None, bias=None, eps=1e-5, **options):
        return ops.group_norm_act(x, groups, weight, bias, eps * 1.01, **options)

    fields = {**vars(goal), "public": broken, "reference": ops.group_norm_act}
    monkeypatch.setattr(properties, "target", lambda name: properties.Target(**fields))
    outcome = properties.run("group_norm_act", 60, seed_=11)
    assert outcome.failed and "float64 says" in outcome.failures[0]


def test_malformed_arguments_are_the_same_again():
    given = [torch.ones(2, 3), None, "mean", 3, 0.5, True, [1.0, 2.0]]
    for number in range(200):
        one, other = list(given), list(given)
        for args in (one, other):
            rng = random.Random(number)
            malformed.argument(rng, args, rng.randrange(len(args)))
        assert [str(a) for a in one] == [str(a) for a in other]


def in_a_process_of_its_own(part: str, scale: float) -> Outcome:
    """The forks of this part want a process without threads."""
    item = PARTS[part].items()[0]
    command = [sys.executable, "-m", "stress", part, "--items", item, "--scale", str(scale)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return Outcome(**json.loads(done.stdout))


def test_entry_points():
    passed(in_a_process_of_its_own("entry-points", 0.1), 290)


def test_a_case_that_kills_its_process_is_a_failure():
    script = (
        "import os, json, time; from stress import isolation\n"
        "def case(i):\n"
        "    if i == 1: os.abort()\n"
        "    if i == 3: time.sleep(60)\n"
        "    return 'ok'\n"
        "results, died = isolation.run(case, 5, seconds_per_case=2)\n"
        "print(json.dumps([sorted(results), died]))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    results, died = json.loads(done.stdout)
    assert results == [0, 2, 4]
    assert [d[0] for d in died] == [1, 3]
    assert "SIGABRT" in died[0][1] and "no end after 2 s" in died[1][1]


def test_models():
    passed(models.run(10, seed=3), 10)


def test_threads():
    passed(concurrency.at_once(1, every=24), 50)
    passed(concurrency.while_forced(1, every=40), 30)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loaders(method: str):
    passed(concurrency.loaders(method, every=40), 10)


def test_processes():
    passed(processes.run(6, seed=5), 12)


def test_report(tmp_path: Path):
    bad = Outcome("part", "second", cases=5)
    for number in range(30):
        bad.fail(f"failure {number}")
    outcomes = [Outcome("part", "first", cases=1200, refused=3), bad]
    shown = table(outcomes).splitlines()
    assert shown[2].split() == ["part", "first", "1,200", "3", "0", "0", "s"]
    assert shown[-1].split()[:4] == ["total", "1,205", "3", "30"]
    save(tmp_path / "report.json", outcomes, seed=1)
    written = json.loads((tmp_path / "report.json").read_text())
    assert len(written["outcomes"][1]["failures"]) == 20 and written["outcomes"][1]["failed"] == 30
    assert written["environment"]["torch"] == torch.__version__
