"""Every Triton kernel compiles for each generation of GPU, keeps its values in registers and moves whole vectors."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap

import pytest
from triton.runtime.jit import KernelInterface

from genmod.kernels.launch import recording
from genmod.testing.compile_only import TARGETS, Row, families

MODULES = {family: importlib.import_module(f"genmod.kernels.{family}") for family in families()}
SHARED_LIMIT = 48 * 1024  # what a block gets on every GPU without asking for more


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Compiled in another process: in this one kernels may be interpreted."""
    code = "import json; from genmod.testing import compile_only; print(json.dumps(compile_only.rows()))"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [Row(*row) for row in json.loads(done.stdout.splitlines()[-1])]


def test_every_case_on_every_target(rows: list[Row]) -> None:
    expected = [
        (f"{family}: {case}", f"sm_{target}")
        for family in families()
        for case in importlib.import_module(f"genmod.kernels.{family}").COMPILE_CASES
        for target in TARGETS
    ]
    found = [(row.kernel, row.target) for row in rows]
    assert list(dict.fromkeys(found)) == expected  # a case may launch several kernels


def test_nothing_spills(rows: list[Row]) -> None:
    assert [row for row in rows if row.spilled] == []


def test_shared_memory_fits(rows: list[Row]) -> None:
    assert [row for row in rows if row.shared > SHARED_LIMIT] == []


def test_noise_does_not_travel_through_shared_memory(rows: list[Row]) -> None:
    """What sums need, one number per warp, is all that there is (see kernels/philox.py, normal_parts)."""
    assert [row for row in rows if "seeded" in row.kernel and row.shared > 64] == []


def test_memory_is_moved_by_wide_accesses(rows: list[Row]) -> None:
    """In the gaussian family all in 128 bits, but for a seed, an incoming gradient and a partial sum. A lost alignment
    shows here first."""
    for row in rows:
        if row.kernel.startswith("gaussian") and "odd" not in row.kernel:
            for kind in row.accesses.split(", "):
                counts = {int(bits): int(n) for n, bits in re.findall(r"(\d+)×(\d+)", kind)}
                wide = counts.pop(128, 0)
                assert wide > 0 or kind == "write 1×32", row
                assert sum(counts.values()) <= (2 if kind.startswith("read") else 1), row


def test_images_are_moved_by_wide_accesses(rows: list[Row]) -> None:
    """Each op of norm_act reads its image in 128 bits, and writes one so; parameters and partial sums come besides."""
    by_case: dict[tuple[str, str], str] = {}
    for row in rows:
        if row.kernel.startswith("norm_act") and "odd" not in row.kernel:
            by_case[row.kernel, row.target] = by_case.get((row.kernel, row.target), "") + row.accesses + "; "
    assert by_case
    for case, accesses in by_case.items():
        assert re.search(r"read \d×128", accesses), case
        assert re.search(r"write \d×128", accesses), case


@pytest.mark.parametrize("family", MODULES)
def test_the_cases_reach_every_kernel(family: str) -> None:
    with recording() as launches:
        for case in MODULES[family].COMPILE_CASES.values():
            case()
    # A family may have its kernels in modules of their own.
    modules = [MODULES[family], *(importlib.import_module(launch.kernel.fn.__module__) for launch in launches)]
    functions = {
        name: value for module in modules for name, value in vars(module).items() if isinstance(value, KernelInterface)
    }
    kernels = set(functions) - {name for function in functions.values() for name in _called_by(function)}
    assert {launch.kernel.__name__ for launch in launches} == kernels


def _called_by(function: KernelInterface) -> set[str]:
    """The names that a kernel, or a function of kernels, calls: those are no kernels themselves."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function.fn)))
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
