"""Every benchmark runs, and an op that is wrong is not reported."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from benchmarks import __main__ as cli
from benchmarks import cases, report, runner
from genmod.specs import specs

CPU = torch.device("cpu")


def smallest(spec):
    """The workload that moves the fewest bytes: every code path of a benchmark, in little time."""
    return min(spec.workloads, key=lambda w: spec.bytes_moved(w.make(CPU, torch.float32), True))


@pytest.mark.parametrize("spec", specs().values(), ids=specs())
def test_every_benchmark_runs(spec):
    for case in cases.cases(spec, smallest(spec), CPU, torch.float32, ("forward+backward", "double backward")):
        for name in ("eager", "genmod"):
            case.calls[name]()


@pytest.mark.parametrize("spec", specs().values(), ids=specs())
def test_every_workload_is_counted(spec):
    for workload in spec.workloads:
        sample = workload.make(CPU, torch.float32)
        for backward in (False, True):
            assert spec.bytes_moved(sample, backward) > 0
            assert spec.flops(sample, backward) > 0


def test_results_hold_what_the_tables_need(tmp_path):
    file = tmp_path / "result.json"
    arguments = ["--op", "sample_kl", "--workload", "small VAE", "--mode", "forward+backward", "--rounds", "5"]
    assert cli.main([*arguments, "--device", "cpu", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert {"commit", "torch", "processor", "date"} <= set(result["machine"])
    assert {"eager", "compile", "genmod"} <= set(result["rows"][0]["median_seconds"])
    assert len(report.rows(result)[0]) == len(report.COLUMNS)
    assert report.markdown(result).count("\n") == 1 + len(result["rows"])


def test_a_wrong_op_is_not_reported():
    right = specs()["reparameterize"]
    wrong = dataclasses.replace(right, public=lambda mean, logvar=None, **kw: 1.01 * right.public(mean, logvar, **kw))
    with pytest.raises(runner.RedGate, match="reparameterize"):
        runner.check(wrong, CPU, torch.float32)
