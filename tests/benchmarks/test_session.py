"""A suite is a session of pytest, whose times pytest-benchmark has."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
import torch

from genmod import measure
from genmod.bench import cases, runner
from genmod.bench.steps import all_steps
from genmod.specs import specs

pytest.importorskip("pytest_benchmark")
SHORT = ("--suite", "quick", "--op", "mse", "--workload", "small", "--rounds", "5", "--device", "cpu")


@pytest.fixture
def made_up(monkeypatch):
    """Times that a test can foresee: one to three times the first of what it puts in here, for every contender."""
    times: list[float] = []

    def interleaved(calls, *rest, **options):
        return {name: [times[0] * k for k in (1, 2, 3)] for name in calls}

    monkeypatch.setattr(measure, "interleaved", interleaved)
    return times


def test_its_files_have_every_time_and_its_command_compares_them(bench, tmp_path):
    files = [tmp_path / f"{name}.json" for name in ("before", "now")]
    for file in files:
        options = ("--mode", "forward", "--json", str(tmp_path / "result.json"))
        assert bench(*SHORT, *options, f"--pytest=--benchmark-json={file}") == 0
    result = json.loads((tmp_path / "result.json").read_text())
    (row,) = result["rows"]
    written = json.loads(files[1].read_text())
    contenders = {b["param"]: b for b in written["benchmarks"]}
    assert {name: b["stats"]["median"] for name, b in contenders.items()} == row["median_seconds"]
    assert {b["group"] for b in contenders.values()} == {"mse, small [64, 10], forward"}
    assert all(len(b["stats"]["data"]) == b["stats"]["rounds"] >= 5 for b in contenders.values())
    assert "seconds" not in row
    assert written["commit_info"]["id"] == result["machine"]["commit"]
    assert written["machine_info"]["torch"] == result["machine"]["torch"]
    compare = [sys.executable, "-m", "pytest_benchmark", "compare", *map(str, files), "--csv", "both.csv"]
    done = subprocess.run(compare, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    compared = list(csv.DictReader((tmp_path / "both.csv").open()))
    assert len(compared) == 2 * len(contenders)
    ours = [float(line["median"]) for line in compared if "genmod]" in line["name"]]
    assert row["median_seconds"]["genmod"] in ours


def test_slower_than_a_saved_run_fails(bench, tmp_path, made_up, capsys):
    store = f"--benchmark-storage={tmp_path / 'runs'}"
    made_up[:] = [1e-3]
    assert bench(*SHORT, f"--pytest={store} --benchmark-save=before") == 0
    options = f"--pytest={store} --benchmark-compare --benchmark-compare-fail=median:10%"
    assert bench(*SHORT, options) == 0
    made_up[:] = [1.2e-3]
    assert bench(*SHORT, options) == 1
    assert "--benchmark-compare-fail: " in capsys.readouterr().out


def test_every_case_is_a_test(bench, capsys):
    assert bench("--suite", "full", "--device", "cpu", "--pytest=--collect-only -q") == 0
    found = capsys.readouterr().out
    for spec in specs().values():
        for workload in spec.workloads:
            for mode in cases.MODES:
                assert f"test_op[{spec.name}, {workload.name}, {mode}]" in found
    assert bench("--suite", "models", "--device", "cpu", "--pytest=--collect-only -q") == 0
    found = capsys.readouterr().out
    assert found.count("test_step[") == sum(not step.gpu for step in all_steps())


def test_pytest_chooses_cases(bench, tmp_path, made_up):
    made_up[:] = [1e-3]
    file = tmp_path / "result.json"
    assert bench(*SHORT, "--op", "l1", "--json", str(file), "--pytest=-q -k 'l1 and backward'") == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["op"], row["mode"]) == ("l1", "forward+backward")


def test_disabled_benchmarks_run_untimed(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "run", lambda *case: pytest.fail("it was timed"))
    called = []
    case = cases.Case("mse", "w", "forward", torch.float32, {"eager": lambda: called.append(1)})
    monkeypatch.setattr(cases, "case", lambda *plan, **options: case)
    assert bench(*SHORT, "--mode", "forward", "--pytest=--benchmark-disable -q") == 0
    assert called == [1]


def test_max_autotune_where_it_is_asked_for(bench, tmp_path):
    file = tmp_path / "result.json"
    assert bench(*SHORT, "--mode", "forward+backward", "--max-autotune", "--json", str(file)) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert {"compile", "compile:max-autotune"} <= row["median_seconds"].keys()


def test_others_go_on_where_one_case_fails(bench, tmp_path, monkeypatch, capsys):
    measured = runner.run

    def run(case, *rest):
        if case.mode == "forward":
            raise RuntimeError("no kernel for this")
        return measured(case, *rest)

    monkeypatch.setattr(runner, "run", run)
    file = tmp_path / "result.json"
    assert bench(*SHORT, "--json", str(file)) == 1
    assert "Failed: mse, small [64, 10], forward: " in capsys.readouterr().out
    result = json.loads(file.read_text())
    assert [row["mode"] for row in result["rows"]] == ["forward+backward"]
    assert [failed["case"] for failed in result["failed"]] == ["mse, small [64, 10], forward"]
    assert "no kernel for this" in result["failed"][0]["why"]


@pytest.mark.parametrize(
    ("options", "message"),
    [("-k nobody", "leaves nothing of the suite by '-k nobody'"), ("--nonsense", "pytest ended with exit code 4")],
)
def test_options_that_leave_nothing_are_said_in_a_line(bench, options, message, capsys):
    assert bench(*SHORT, f"--pytest={options}") == 2
    assert message in capsys.readouterr().err
