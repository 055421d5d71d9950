"""Every benchmark runs, and an op that is wrong is not reported."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import time

import pytest
import torch
from torch import Tensor

from genmod import measure
from genmod.bench import cases, machine, measurements, peers, report, runner, scaling, step, suites
from genmod.bench.steps import all_steps
from genmod.pretext import tasks
from genmod.recipes.presets import RECIPES
from genmod.specs import specs

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    """Training steps this small lose more to a second thread than it gains."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def smallest(spec):
    """The workload that moves the fewest bytes: every code path of a benchmark, in little time."""
    return min(spec.workloads, key=lambda w: spec.bytes_moved(w.make(CPU, torch.float32), True))


@pytest.mark.parametrize("spec", specs().values(), ids=specs())
def test_every_benchmark_runs(spec):
    for mode in cases.MODES:
        case = cases.case(spec, smallest(spec), mode, CPU, torch.float32)
        for name in case.calls.keys() - {"compile"}:
            case.calls[name]()


@pytest.mark.parametrize("chosen", all_steps(), ids=lambda s: s.name)
def test_every_training_step_runs(chosen):
    """Each checks by itself that genmod's gradients are eager's."""
    torch.manual_seed(0)
    contenders = (chosen.small or chosen.make)(CPU, torch.float32)
    assert {"eager", "genmod"} <= contenders.keys()
    for name in contenders:
        if not name.startswith("compile"):
            contenders[name]()


@pytest.mark.parametrize("spec", specs().values(), ids=specs())
def test_every_workload_is_counted(spec):
    for workload in spec.workloads:
        sample = workload.make(CPU, torch.float32)
        for backward in (False, True):
            assert spec.bytes_moved(sample, backward) > 0
            assert spec.flops(sample, backward) > 0


@pytest.mark.parametrize("op", scaling.AXES)
def test_every_scaled_op_grows(op):
    axes = scaling.AXES[op]
    for axis in axes.sizes:
        made = list(scaling.workloads(specs()[op], axis, (4, 8)))
        assert [size for size, _ in made] == [4, 8]
        small, large = (sum(t.numel() for t in w.make(CPU, torch.float32).tensors()) for _, w in made)
        assert large > small
    tiny = dict.fromkeys(axes.base, 4)
    sample = axes.make(CPU, torch.float32, **tiny)
    specs()[op].public(*sample.args, **sample.kwargs)


def test_the_quick_suite_has_every_op_and_no_trifle():
    chosen = {name: list(suites.workloads(spec, "quick")) for name, spec in specs().items()}
    assert all(len(workloads) == 1 for workloads in chosen.values())
    sample = chosen["sample_kl"][0].make(CPU, torch.float32)
    assert specs()["sample_kl"].bytes_moved(sample, False) >= 1 << 18
    assert not list(suites.workloads(specs()["mse"], "quick", "no such name"))


def test_results_hold_what_the_tables_need(bench, tmp_path):
    file, lines, plots = tmp_path / "result.json", tmp_path / "result.csv", tmp_path / "plots"
    options = ["--op", "sample_kl", "--workload", "small VAE", "--mode", "forward+backward", "--rounds", "5"]
    outputs = ["--json", str(file), "--csv", str(lines), "--plots", str(plots), "--markdown", str(tmp_path / "t.md")]
    assert bench(*options, "--suite", "quick", "--device", "cpu", *outputs) == 0
    result = json.loads(file.read_text())
    assert {"commit", "torch", "processor", "date"} <= set(result["machine"])
    (row,) = result["rows"]
    assert {"eager", "compile", "genmod"} <= set(row["median_seconds"])
    assert 1 <= row["launches"]["genmod"] < row["launches"]["eager"]
    assert row["copy_bytes_per_second"] > 0 and result["matmul_flops_per_second"] > 0
    found = report.cells(row, result)
    assert {"genmod", "x eager", "x compile", "of copy", "roofline", "launches"} <= set(found)
    read = list(csv.DictReader(io.StringIO(lines.read_text())))
    assert {r["contender"] for r in read} == set(row["median_seconds"])
    assert float(next(r for r in read if r["contender"] == "genmod")["x_genmod"]) == 1.0
    assert {f.name for f in plots.iterdir()} == {f"{n}.{e}" for n in ("ratios", "roofline") for e in ("png", "svg")}
    assert (tmp_path / "t.md").read_text().count("| sample_kl |") == 1
    # A result names the machine, and nobody's folders.
    assert str(tmp_path.home()) not in file.read_text() and "/" not in json.dumps(result["machine"])


def test_a_suite_that_is_ended_leaves_what_it_measured(bench, tmp_path, monkeypatch):
    file, measured = tmp_path / "result.json", runner.run

    def run_once(case, *rest):
        if case.mode == "forward+backward":
            raise KeyboardInterrupt
        return measured(case, *rest)

    monkeypatch.setattr(runner, "run", run_once)
    options = ["--op", "mse", "--workload", "small", "--suite", "quick", "--rounds", "5", "--device", "cpu"]
    with pytest.raises(KeyboardInterrupt):
        bench(*options, "--json", str(file))
    result = json.loads(file.read_text())
    assert [row["mode"] for row in result["rows"]] == ["forward"] and result["unfinished"]
    assert any(note.startswith("Unfinished") for note in measurements.notes(result))
    monkeypatch.undo()
    assert bench(*options, "--json", str(file)) == 0
    result = json.loads(file.read_text())
    assert len(result["rows"]) == 2 and "unfinished" not in result


def test_the_steps_of_recipes_say_what_bounds_them(bench, tmp_path):
    file = tmp_path / "result.json"
    options = ["--suite", "models", "--workload", "next-step on digits", "--rounds", "5", "--device", "cpu"]
    assert bench(*options, "--json", str(file)) == 0
    result = json.loads(file.read_text())
    (row,) = result["rows"]
    assert set(row["median_seconds"]) == {"eager", "genmod", "genmod:data"}
    assert set(row["peak_bytes"]) == {"eager", "genmod"}
    assert all(0 < share < 1 for share in row["products_share"].values())
    found = report.cells(row, result)
    assert float(found["ceiling"]) > float(found["x eager"])
    assert 0 < float(found["data"].removesuffix(" %")) < 100
    assert "genmod:data" not in report.losses([(row, result)])


def test_products_are_told_from_the_rest():
    x = torch.randn(200, 200)
    assert 0 < measure.products_share(lambda: x @ x, CPU) <= 1
    assert measure.products_share(lambda: x.exp().sum(), CPU) == 0


def test_every_recipe_and_task_has_a_step():
    named = {step.name.split(" on ")[0] for step in all_steps() if step.op in ("recipe_step", "pretext_step")}
    assert named == {*RECIPES, *(name.replace("_", "-") for name in tasks())}


def test_scaling_curves(bench, tmp_path):
    file = tmp_path / "scaling.json"
    arguments = ["--op", "dip", "--scale", "latent", "--rounds", "5", "--device", "cpu"]
    assert bench(*arguments, "--json", str(file), "--plots", str(tmp_path)) == 0
    result = json.loads(file.read_text())
    assert [row["size"] for row in result["rows"]] == list(scaling.AXES["dip"].sizes["latent"])
    assert (tmp_path / "scaling_latent.svg").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "nobody's"], "nothing to measure"),
        (["report", "missing.json", "--out", "page.html"], "cannot read missing.json"),
        (["tables", "--root", "/nowhere"], "source checkout"),
        (["--scale", "batch", "--csv", "a.csv"], "--csv: it is for suites"),
        (["--suite", "models", "--op", "mse"], "--op: the suite models"),
        (["--rounds", "2"], "--rounds: got 2"),
        (["--against", "no-such-revision", "--op", "mse"], "no revision 'no-such-revision'"),
    ],
)
def test_what_the_user_can_put_right_is_said_in_a_line(bench, arguments, message, capsys):
    assert bench(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("genmod bench: ") and message in error


def test_a_wrong_op_is_not_reported(bench, monkeypatch, capsys):
    """Not even beside right ones; and the command fails."""
    right = specs()["reparameterize"]
    wrong = dataclasses.replace(right, public=lambda mean, logvar=None, **kw: 1.01 * right.public(mean, logvar, **kw))
    with pytest.raises(runner.RedGate, match="reparameterize"):
        runner.check(wrong, CPU, torch.float32)
    monkeypatch.setattr(measurements, "specs", lambda: {"reparameterize": wrong})
    assert bench("--op", "reparameterize", "--device", "cpu") == 1
    output = capsys.readouterr().out
    assert "reparameterize is not reported, because it is wrong" in output and "forward" not in output


def test_cold_inputs_are_others_each_time(monkeypatch):
    monkeypatch.setattr(machine, "last_cache_bytes", lambda device: 40_000)
    spec, seen = specs()["mse"], []

    def mse(output: Tensor, target: Tensor) -> Tensor:
        seen.append(output.data_ptr())
        return spec.public(output, target)

    watching = dataclasses.replace(spec, public=mse)
    case = cases.case(watching, smallest(spec), "forward", CPU, torch.float32, cold=True)
    for _ in range(40):
        case.calls["genmod"]()
    # 64 x 10 pairs of floats are 5 kB: more than sixteen of them fill twice that cache.
    assert len(set(seen)) == len(set(seen[:18])) > 16
    assert case.copied >= 80_000


def test_a_peer_that_computes_something_else_is_not_raced(monkeypatch):
    spec = specs()["mse"]

    def peer(name: str, function) -> peers.Peer:
        return peers.Peer("mse", "torch", name, name, lambda sample: function)

    def fails(output: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("no kernel")

    def right(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().sum() / len(output)

    def wrong_gradient(output: Tensor, target: Tensor) -> Tensor:
        return right(output, target).detach() + 0 * output.sum() + 0 * target.sum()

    monkeypatch.setattr(peers, "PEERS", (
        peer("right", right), peer("mean", lambda o, t: (o - t).square().mean()), peer("fails", fails),
        peer("flat", wrong_gradient), peers.Peer("mse", "not_installed_anywhere", "x", "x", lambda sample: right),
    ))  # fmt: skip
    sample = smallest(spec).make(CPU, torch.float32)
    raced, not_raced = peers.contenders(spec, sample)
    assert set(raced) == {"peer:right"}
    why = {entry["peer"]: entry["why"] for entry in not_raced}
    assert "a value is off by 0.9" in why["mean"]
    assert "RuntimeError: no kernel" in why["fails"]
    assert "a gradient is off by 1" in why["flat"]
    assert "x" not in why


@pytest.mark.parametrize("peer", [p for p in peers.PEERS if "cpu" in p.devices], ids=lambda p: f"{p.op}-{p.name}")
def test_every_peer_serves_a_workload(peer):
    """Else it would silently be left out. pythae's weights of β-TCVAE's stratified estimator are known to be wrong."""
    pytest.importorskip(peer.module)
    spec = specs()[peer.op]
    found = [peers.contenders(spec, w.make(CPU, torch.float32)) for w in spec.workloads if "1024" not in w.name]
    assert any(peer.name in raced for raced, _ in found)
    refused = [r["why"] for _, refused in found for r in refused if r["peer"] == peer.distribution]
    assert not [why for why in refused if "something else" not in why]
    assert bool(refused) == (peer.op in ("total_correlation", "mmd"))


def test_steps_that_disagree_are_not_timed():
    a, b = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)

    def backward(model, factor):
        model.zero_grad()
        (factor * model(torch.ones(2, 3))).sum().backward()

    step.agree(a, lambda: backward(a, 2.0), b, lambda: backward(b, 2.0))
    with pytest.raises(AssertionError, match="weight: gradients differ"):
        step.agree(a, lambda: backward(a, 2.0), b, lambda: backward(b, 2.1))


def test_the_slow_sit_out_and_the_others_go_on():
    counts = {"slow": 0, "quick": 0}

    def slow():
        counts["slow"] += 1
        time.sleep(0.03)

    def quick():
        counts["quick"] += 1

    times = measure.interleaved({"slow": slow, "quick": quick}, CPU, rounds=7, budget=0.1)
    assert len(times["slow"]) == 2
    assert len(times["quick"]) == 7
    assert counts["slow"] <= 6  # twice to see how long it takes, and twice in each round, once untimed
    assert min(times["slow"]) > 0.03 > max(times["quick"])


def test_launches_are_kernels_and_not_views():
    x = torch.randn(4, 6)
    assert measure.launches(lambda: x.add(1).mul(2).t().reshape(24), CPU) == 3  # the reshape copies
    assert measure.launches(lambda: x.view(24)[3:].unsqueeze(0), CPU) == 0
    spec = specs()["mse"]
    sample = smallest(spec).make(CPU, torch.float32)
    assert measure.launches(lambda: spec.public(*sample.args), CPU) == 1
