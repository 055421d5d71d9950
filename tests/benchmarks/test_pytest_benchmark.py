"""The benchmarks on pytest-benchmark's own clock run, and its file has what its `compare` needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """`pytest benchmarks` with these options, out of reach of the tests' own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_INTERPRET"))}
    command = [sys.executable, "-m", "pytest", str(BENCHMARKS), "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def test_a_race_of_an_op_in_its_file(tmp_path):
    file = tmp_path / "mse.json"
    short = ("--benchmark-max-time", "0.01", "--benchmark-min-rounds", "2", "--benchmark-warmup", "off")
    done = run("-k", "mse and not compile", *short, "--benchmark-json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())["benchmarks"]
    groups = {b["group"] for b in found}
    assert {mode for group in groups for mode in group.split(", ")[-1:]} == {"forward", "forward+backward"}
    for group in groups:
        assert {b["params"]["contender"] for b in found if b["group"] == group} == {"eager", "genmod"}
    assert all(b["stats"]["median"] > 0 for b in found)


def test_every_op_has_its_benchmarks():
    from genmod.specs import specs

    done = run("--collect-only", "--suite", "full")
    assert done.returncode == 0, done.stdout + done.stderr
    for spec in specs().values():
        for workload in spec.workloads:
            for mode in ("forward", "forward+backward", "double backward"):
                assert f"[{spec.name}, {workload.name}, {mode}, genmod]" in done.stdout
