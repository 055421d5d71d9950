"""A suite as a session of pytest on pytest-benchmark: a test per case, in it a benchmark per contender.

pytest chooses the cases, runs them and goes on where one fails; pytest-benchmark keeps every time, and saves, compares
and draws what its own options ask for. Of it only the loop is replaced: that would run one contender to its end before
the next began, and here they take turns (`genmod.measure.interleaved`), each round's time a round of its benchmark.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.session import PerformanceRegression

from genmod.bench import cases, runner, suites
from genmod.bench.progress import Progress
from genmod.bench.step import Step
from genmod.bench.steps import all_steps
from genmod.recipes import RecipeError
from genmod.registry import OpSpec, Workload

_SUITE = Path(__file__).with_name("suite")
#: What prints, or keeps files, where genmod has its own way; and no plugin that happens to be installed.
_QUIET = ("-p", "no:terminal", "--benchmark-quiet")
_OPTIONS = ("-c", os.devnull, "--rootdir", str(_SUITE), "--import-mode=importlib", "--capture=no")
_PLUGINS = ("-p", "benchmark", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "no:logging")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure, and how.

    Attributes:
        name, suite: of `suites.SUITES`, the second perhaps with other rounds and modes.
        specs: the ops, where it is a suite of ops.
        device, dtype: where, and in what.
        workload: only workloads and steps whose name contains this.
        cold: whether each call gets inputs that have left the cache.
        autotuned: whether torch.compile takes part with max-autotune too; on a GPU it does in any case.
        machine: what the results say that they were measured on.
    """

    name: str
    suite: suites.Suite
    specs: tuple[OpSpec, ...]
    device: torch.device
    dtype: torch.dtype
    workload: str = ""
    cold: bool = False
    autotuned: bool = False
    machine: dict[str, Any] = dataclasses.field(default_factory=dict)

    def ops(self) -> list[tuple[OpSpec, Workload, str]]:
        """Op, workload and mode of each case."""
        return [
            (spec, workload, mode)
            for spec in self.specs
            for workload in suites.workloads(spec, self.name, self.workload, self.device.type)
            for mode in self.suite.modes
        ]

    def steps(self) -> list[Step]:
        """The training steps that run on the device."""
        return [s for s in all_steps() if self.workload in s.name and (self.device.type == "cuda" or not s.gpu)]


def run(plan: Plan, progress: Progress = Progress(), options: str = "") -> dict[str, Any]:  # noqa: B008 (immutable)
    """`rows`, `peers_not_raced`, `refused` (ops that are wrong, and so have no rows) and `failed` (cases that raised).

    `options` are more of pytest's and pytest-benchmark's, as on a command line; with some, pytest prints as usual.
    Raises `RecipeError` where nothing is to be measured or pytest does not take the options.
    """
    of_steps = plan.name == "models"
    if not (plan.steps() if of_steps else plan.ops()):
        raise RecipeError(f"nothing to measure: no workload's name contains {plan.workload!r}")
    session = _Session(plan, progress)
    printed = (*shlex.split(options), "--benchmark-group-by=group") if options else _QUIET
    file = str(_SUITE / ("test_steps.py" if of_steps else "test_ops.py"))
    with _environment():
        try:
            code = pytest.main([file, *_OPTIONS, *_PLUGINS, *printed], plugins=[session])
        except PerformanceRegression as error:
            session.failed.append({"case": "--benchmark-compare-fail", "why": str(error)})
            code = pytest.ExitCode.TESTS_FAILED
        except ImportError as error:  # what some of its options need is no dependency of genmod's
            raise RecipeError(f"--pytest {options!r}: {error}") from error
    if code == pytest.ExitCode.INTERRUPTED and session.ended:
        raise KeyboardInterrupt
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise RecipeError(f"nothing to measure: pytest leaves nothing of the suite by {options!r}")
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RecipeError(f"pytest ended with exit code {int(code)}; its message is above")
    return {
        "rows": session.rows,
        "peers_not_raced": list(session.not_raced.values()),
        "refused": [{"op": name, "why": str(wrong)} for name, wrong in session.gates.items() if wrong],
        "failed": session.failed,
    }


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """That of a session of its own, also where it runs inside a test of another."""
    before = dict(os.environ)
    for name in [n for n in before if n.startswith("PYTEST_")]:
        del os.environ[name]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class _Session:
    """The plugin of one run: its cases, its fixtures, and what came of them."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan, self.progress = plan, progress
        self.rows: list[runner.Row] = []
        self.not_raced: dict[tuple[str, ...], dict[str, str]] = {}
        self.gates: dict[str, runner.RedGate | None] = {}
        self.failed: list[dict[str, str]] = []
        self.ended = False

    # What there is to run.

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "step" in metafunc.fixturenames:
            steps = self.plan.steps()
            metafunc.parametrize("step", steps, ids=[f"{s.op}, {s.name}" for s in steps])
        else:
            ops = self.plan.ops()
            names = [f"{spec.name}, {workload.name}, {mode}" for spec, workload, mode in ops]
            metafunc.parametrize(("spec", "workload", "mode"), ops, ids=names)

    # Fixtures.

    @pytest.fixture
    def device(self) -> torch.device:
        return self.plan.device

    @pytest.fixture
    def dtype(self) -> torch.dtype:
        return self.plan.dtype

    @pytest.fixture
    def gate(self) -> Callable[[OpSpec], None]:
        """Fails for an op that is wrong: its speed is nobody's business."""

        def check(spec: OpSpec) -> None:
            if spec.name not in self.gates:
                self.gates[spec.name] = None
                try:
                    runner.check(spec, self.plan.device, self.plan.dtype)
                except runner.RedGate as wrong:
                    self.gates[spec.name] = wrong
            wrong_before = self.gates[spec.name]
            if wrong_before is not None:
                raise wrong_before

        return check

    @pytest.fixture
    def case(self) -> Callable[[OpSpec, Workload, str], cases.Case]:
        plan = self.plan

        def make(spec: OpSpec, workload: Workload, mode: str) -> cases.Case:
            options = {"compiled": mode in plan.suite.compiled, "autotuned": plan.autotuned, "cold": plan.cold}
            return cases.case(spec, workload, mode, plan.device, plan.dtype, **options)

        return make

    @pytest.fixture
    def race(self, benchmark: Any) -> Callable[[cases.Case], None]:
        """Times a case; each contender becomes a benchmark of pytest-benchmark's."""

        def run(case: cases.Case) -> None:
            if benchmark.disabled:  # --benchmark-disable: only whether it runs is asked
                for name, call in case.calls.items():
                    with case.within.get(name, contextlib.nullcontext)():
                        call()
                return
            row = runner.run(case, self.plan.device, self.plan.suite)
            for contender, seconds in row["seconds"].items():
                _keep(benchmark, row, contender, seconds)
            self.rows.append(row)
            self.progress.row(row)
            for peer in case.not_raced:
                self.not_raced[case.op, peer["peer"], peer["why"]] = {"op": case.op, "workload": case.workload, **peer}

        return run

    # What pytest tells.

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.progress.total(len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.progress.now(_name(nodeid))

    def pytest_runtest_logfinish(self) -> None:
        self.progress.done()

    def pytest_exception_interact(
        self, node: pytest.Item, call: pytest.CallInfo[Any], report: pytest.TestReport
    ) -> None:
        if call.excinfo is not None and not isinstance(call.excinfo.value, runner.RedGate):  # `gates` has these
            self.failed.append({"case": _name(node.nodeid), "why": report.longreprtext})

    def pytest_keyboard_interrupt(self) -> None:
        self.ended = True

    # What its files say of machine and commit is what those of genmod say.

    @pytest.hookimpl(tryfirst=True)
    def pytest_benchmark_generate_machine_info(self) -> dict[str, Any]:
        return {k: v for k, v in self.plan.machine.items() if k not in ("commit", "uncommitted_changes", "date")}

    @pytest.hookimpl(tryfirst=True)
    def pytest_benchmark_generate_commit_info(self) -> dict[str, Any]:
        keys = {"id": "commit", "dirty": "uncommitted_changes", "time": "date"}
        return {key: self.plan.machine.get(name) for key, name in keys.items()}


def _name(nodeid: str) -> str:
    return nodeid.partition("[")[2].removesuffix("]")


def _keep(benchmark: Any, row: runner.Row, contender: str, seconds: list[float]) -> None:
    """Give pytest-benchmark one contender's times. Its fixture is of one function, so each gets a copy of it."""
    benchmark._mode = "interleaved"  # else it is called unused
    of_one = copy.copy(benchmark)
    of_one.group = f"{row['op']}, {row['workload']}, {row['mode']}"
    of_one.name = f"{row['op']}[{row['workload']}, {row['mode']}, {contender}]"
    of_one.fullname = f"genmod bench::{of_one.name}"
    of_one.param = contender
    of_one.params = {key: row[key] for key in ("workload", "mode", "dtype")} | {"contender": contender}
    of_one.extra_info = {key: row[key] for key in ("bytes_moved", "flops", "cold")}
    stats = of_one._make_stats(iterations=1)
    for time in seconds:
        stats.update(time)
