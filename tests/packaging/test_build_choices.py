"""What a build does when something is missing or fails: it says so once and goes on without, unless told to insist."""

from __future__ import annotations

from pathlib import Path

import pytest
import setuptools

# Both answer what is asked of them before they have to compile.
CXX_THAT_FAILS = """#!/bin/sh
case "$*" in
  *--version*) echo 'Sulking C++ 1.0';;
  *) echo 'error: out of patience'; exit 3;;
esac
"""
NVCC_THAT_FAILS = """#!/bin/sh
case "$*" in
  *--dryrun*) echo '#$ TOP=/usr/local/nowhere' >&2;;
  *--list-gpu-arch*) echo compute_80;;
  *--version*) echo 'Sulking nvcc 1.0';;
  *) echo 'error: no patience for GPUs'; exit 3;;
esac
"""


@pytest.fixture
def compilers(tmp_path: Path) -> dict[str, str]:
    """The environment variables that put a failing compiler in place of the real one."""
    scripts = {"CXX": CXX_THAT_FAILS, "GENMOD_NVCC": NVCC_THAT_FAILS}
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return {name: str(tmp_path / name) for name in scripts}


@pytest.fixture
def copy(project, tmp_path):
    """Sources of its own, with nothing built."""
    return project.copy(tmp_path / "copy")


@pytest.fixture
def copy_with_objects(native_wheel, project, tmp_path):
    """Sources of its own, with the objects of a build that went well."""
    return project.copy(tmp_path / "copy", objects=True)


@pytest.fixture
def python_without_torch(tmp_path: Path) -> dict[str, str]:
    """The environment of a build that is isolated: setuptools is there and torch is not."""
    isolated = tmp_path / "isolated"
    isolated.mkdir()
    site_packages = Path(setuptools.__file__).parents[1]
    for pattern in ("setuptools", "setuptools-*", "_distutils_hack", "wheel", "wheel-*"):
        for found in site_packages.glob(pattern):
            (isolated / found.name).symlink_to(found)
    return {"PYTHONPATH": str(isolated)}


def test_failing_compiler_leaves_a_pure_install(copy, compilers, record_of):
    done = copy.build("wheel", CXX=compilers["CXX"], GENMOD_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("genmod: WARNING") == 1
    assert "out of patience" in done.stderr
    assert copy.wheel().name.endswith("-py3-none-any.whl")
    assert "out of patience" in record_of(copy.wheel())["why_not_native"]


def test_failing_compiler_fails_a_build_that_insists(copy, compilers):
    done = copy.build("wheel", CXX=compilers["CXX"], GENMOD_CUDA="0", GENMOD_NATIVE="1")
    assert done.returncode != 0
    assert "out of patience" in done.stderr
    assert not list((copy.folder / "dist").glob("*.whl"))


@pytest.mark.slow
def test_failing_nvcc_leaves_the_cpu_part(copy_with_objects, compilers, record_of):
    done = copy_with_objects.build("wheel", GENMOD_NVCC=compilers["GENMOD_NVCC"])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("genmod: WARNING") == 1
    record = record_of(copy_with_objects.wheel())
    assert record["native"]
    assert not record["cuda"]
    assert "no patience for GPUs" in record["why_not_cuda"]


@pytest.mark.slow
def test_failing_nvcc_fails_a_build_that_insists(copy_with_objects, compilers):
    done = copy_with_objects.build("wheel", GENMOD_NVCC=compilers["GENMOD_NVCC"], GENMOD_CUDA="1")
    assert done.returncode != 0
    assert "no patience for GPUs" in done.stderr


def test_isolated_build_says_what_to_do(copy, python_without_torch, record_of):
    done = copy.build("wheel", "-S", **python_without_torch)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("genmod:")]
    assert len(lines) == 1
    assert "--no-build-isolation" in lines[0]
    assert copy.wheel().name.endswith("-py3-none-any.whl")
    assert "--no-build-isolation" in record_of(copy.wheel())["why_not_native"]


def test_isolated_build_that_insists_fails(copy, python_without_torch):
    done = copy.build("wheel", "-S", GENMOD_NATIVE="1", **python_without_torch)
    assert done.returncode != 0
    assert "--no-build-isolation" in done.stderr


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"GENMOD_NATIVE": "yes"}, "GENMOD_NATIVE must be 0, 1 or auto, got 'yes'"),
        ({"GENMOD_CUDA": "2"}, "GENMOD_CUDA must be 0, 1 or auto, got '2'"),
        ({"GENMOD_NATIVE": "0", "GENMOD_CUDA": "1"}, "GENMOD_NATIVE=0 forbids"),
    ],
)
def test_bad_switches_are_named(copy, switches, message):
    done = copy.build("wheel", **switches)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
