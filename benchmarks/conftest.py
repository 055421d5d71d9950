"""Options of `pytest benchmarks`, and its cases: each workload of each op, in each mode, by each contender."""

from __future__ import annotations

import pytest

from genmod.bench.cases import MODES
from genmod.bench.suites import workloads
from genmod.specs import specs

#: Those that every op has. Peers and further backends race in `genmod bench`, which knows whom to compare with whom.
CONTENDERS = ("eager", "compile", "genmod")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where to run (default: cpu)")
    parser.addoption("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "float64"))
    parser.addoption("--suite", default="quick", choices=("quick", "full"), help="which workloads (default: quick)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    suite, device = metafunc.config.getoption("--suite"), metafunc.config.getoption("--device")
    # torch.compile raises for a backward of a backward.
    cases = [
        (spec, workload, mode, contender)
        for spec in specs().values()
        for workload in workloads(spec, suite, device=device)
        for mode in (MODES[:2] if suite == "quick" else MODES)
        for contender in CONTENDERS
        if (mode, contender) != ("double backward", "compile")
    ]
    names = [f"{spec.name}, {workload.name}, {mode}, {contender}" for spec, workload, mode, contender in cases]
    metafunc.parametrize(("spec", "workload", "mode", "contender"), cases, ids=names)
