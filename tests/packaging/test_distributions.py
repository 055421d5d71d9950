"""What is inside the sdist and the wheels, and what their names promise."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from genmod import __version__


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {n for n in archive.namelist() if not n.endswith("/")}


def test_sdist_has_every_source_and_nothing_built(sdist):
    with tarfile.open(sdist) as archive:
        inside = {"/".join(Path(m.name).parts[1:]) for m in archive.getmembers() if m.isfile()}
    needed = {
        "LICENSE", "MANIFEST.in", "Makefile", "README.md", "constraints.txt", "pyproject.toml", "setup.py",
        "build_support/native.py", "build_support/plan.py", "csrc/ops/gaussian.cpp", "csrc/ops/tensors.h",
        "csrc/cpu/gaussian.cpp", "csrc/cuda/gaussian.cu", "genmod/py.typed", "kernels/__init__.py",
        "tests/conftest.py", "tests/packaging/conftest.py",
    }  # fmt: skip
    assert needed <= inside
    built = [n for n in inside if n.endswith((".so", ".o", ".pyc", "_build.json"))]
    assert not built


@pytest.mark.slow
def test_native_wheel(native_wheel):
    assert native_wheel.name.startswith(f"genmod_torch-{__version__}-cp310-abi3-")
    names = names_in(native_wheel)
    outside = [n for n in names if not n.startswith(("genmod/", f"genmod_torch-{__version__}.dist-info/"))]
    assert not outside
    assert {"genmod/_C.abi3.so", "genmod/py.typed", "genmod/kernels/__init__.py", "genmod/ops/__init__.py"} <= names
    assert not [n for n in names if n.endswith((".cpp", ".cu", ".h"))]


@pytest.mark.slow
def test_native_library_knows_no_path_of_this_machine(native_wheel, project):
    with zipfile.ZipFile(native_wheel) as archive:
        library = archive.read("genmod/_C.abi3.so")
    for path in (Path(torch.__file__).parent, project.folder):
        assert str(path).encode() not in library


def test_pure_wheel(pure_wheel):
    assert pure_wheel.name == f"genmod_torch-{__version__}-py3-none-any.whl"
    names = names_in(pure_wheel)
    assert not [n for n in names if n.endswith(".so")]
    assert "genmod/kernels/__init__.py" in names


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils' nm")
def test_no_code_is_shared_between_instruction_sets(native_wheel, project):
    """Of a function that several objects define the linker keeps one: if AVX-512 code, it crashes older processors."""
    defined: dict[str, set[str]] = {}
    for obj in project.objects.glob("*.o"):
        variant = obj.name.split(".")[-3]
        table = subprocess.run(["nm", "--defined-only", str(obj)], capture_output=True, text=True, check=True).stdout
        kinds = [(kind, symbol) for _, kind, symbol in (line.split(maxsplit=2) for line in table.splitlines())]
        # DW.ref.* is a pointer to the one routine that unwinds exceptions: data, and the same in every object.
        weak = {symbol for kind, symbol in kinds if kind in "WVu" and not symbol.startswith("DW.ref.")}
        defined.setdefault(variant, set()).update(weak)
    for variant in {"avx2", "avx512"} & set(defined):
        assert not defined[variant], f"weak symbols for {variant}, make them static: {sorted(defined[variant])}"
