"""Holds the floors of the house: arrows point down only. Every import counts, also one inside a function."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the ground up. A unit may import those below its floor; "genmod" is the public face, genmod/__init__.py.
FLOORS = [
    {"_native", "backends", "gate", "layout", "measure", "registry"},
    {"reference", "kernels"},
    {"ops"},
    {"explain", "nn", "penalties", "specs", "swap"},
    {"models"},
    {"comparison", "latent", "pretext"},
    {"genmod"},
    {"doctor", "recipes", "testing"},
    {"bench"},
    {"cli"},
    {"__main__"},
]
FLOOR = {unit: number for number, floor in enumerate(FLOORS) for unit in floor}
# Neighbours that may know each other, one way.
BESIDE = {
    ("backends", "_native"),
    ("backends", "gate"),
    ("kernels", "reference"),
    ("swap", "nn"),
    ("swap", "penalties"),
    ("penalties", "nn"),
    ("recipes", "testing"),
}
# The ops reach the kernels through the dispatcher alone; only what tests them may hold them in hand.
MAY_IMPORT_KERNELS = {"kernels", "testing"}

PACKAGES = {"genmod": ROOT / "genmod", "genmod.kernels": ROOT / "kernels"}


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def unit_of(module: str) -> str:
    """The part of the house that a module belongs to: genmod.ops.gaussian -> ops."""
    return module.split(".")[1] if "." in module else module


def imports_of(module: str) -> Iterator[tuple[str, int]]:
    """Every module that `module` imports, with the line; of ours, the submodule rather than its package."""
    path = MODULES[module]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = origin_of(node, module, path)
            for alias in node.names:
                taken = f"{origin}.{alias.name}"
                yield (taken if taken in MODULES else origin), node.lineno


def origin_of(node: ast.ImportFrom, module: str, path: Path) -> str:
    """The absolute name of what stands between `from` and `import`."""
    if not node.level:
        return node.module or ""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def arrows() -> list[tuple[str, str, str]]:
    """(importing unit, imported unit, where) for every import inside the package."""
    found = []
    for module in MODULES:
        for imported, line in imports_of(module):
            if imported.split(".")[0] == "genmod":
                where = f"{MODULES[module].relative_to(ROOT)}:{line} imports {imported}"
                found.append((unit_of(module), unit_of(imported), where))
    return found


def test_every_module_has_a_floor():
    homeless = {unit_of(m) for m in MODULES} - set(FLOOR)
    assert not homeless, f"put these on a floor in {Path(__file__).name}: {sorted(homeless)}"


def test_arrows_point_down():
    wrong = [
        where
        for source, target, where in arrows()
        if source != target and FLOOR[target] >= FLOOR[source] and (source, target) not in BESIDE
    ]
    assert not wrong, "imports that go up, or sideways, in the house:\n" + "\n".join(wrong)


def test_kernels_are_reached_through_the_dispatcher():
    wrong = [where for source, target, where in arrows() if target == "kernels" and source not in MAY_IMPORT_KERNELS]
    assert not wrong, "\n".join(wrong)


def test_only_kernels_import_triton():
    wrong = [
        f"{MODULES[module].relative_to(ROOT)}:{line}"
        for module in MODULES
        for imported, line in imports_of(module)
        if imported.split(".")[0] == "triton" and unit_of(module) not in MAY_IMPORT_KERNELS
    ]
    assert not wrong, "\n".join(wrong)


def test_kernel_sources_see_no_tensors():
    """Only csrc/ops includes torch: everything else works on raw pointers."""
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".cu", ".h", ".cuh")]
    sources = [p for p in sources if p.parent.name != "ops"]
    assert sources
    forbidden = re.compile(r'#include\s*[<"](torch|ATen|c10|Python)\b')
    wrong = [str(p.relative_to(ROOT)) for p in sources if forbidden.search(p.read_text())]
    assert not wrong


def test_relative_and_nested_imports_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = tmp_path / "bad.py"
    source.write_text("def f():\n    from ..nn import gaussian\n    from . import philox\n    import triton\n")
    monkeypatch.setitem(MODULES, "genmod.reference.bad", source)
    expected = [("genmod.nn.gaussian", 2), ("genmod.reference.philox", 3), ("triton", 4)]
    assert list(imports_of("genmod.reference.bad")) == expected


def test_import_brings_no_more_than_needed():
    """`import genmod` loads neither Triton nor what only recipes need, and leaves CUDA alone."""
    code = (
        "import json, sys, torch; before = set(sys.modules); import genmod;"
        "print(json.dumps([sorted(set(sys.modules) - before), torch.cuda.is_initialized()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new, cuda_initialised = json.loads(done.stdout)
    unwanted = {"triton", "matplotlib", "rich", "sklearn", "skimage", "scipy", "PIL"}
    assert not unwanted & {name.split(".")[0] for name in new}
    assert not {"genmod.kernels", "genmod.bench", "genmod.recipes", "genmod.testing", "genmod.models"} & set(new)
    assert not cuda_initialised
