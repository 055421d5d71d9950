"""Builds the kernels of csrc/cuda for the CPU, through cuda_on_cpu.h."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
CUDA_HEADERS = ("cuda_runtime.h", "cuda_runtime_api.h", "cuda_fp16.h", "cuda_bf16.h")


def build(folder: Path, entry: str) -> Path:
    """A library made of `entry`, C++ that includes the .cu files it wants; skips where it cannot be built."""
    compiler = shutil.which("g++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs g++ on Linux to build the CUDA kernels for the CPU")
    for name in CUDA_HEADERS:
        (folder / name).write_text(f'#include "{HERE / "cuda_on_cpu.h"}"\n')
    sources = shutil.copytree(CSRC, folder / "csrc")
    shutil.copy(HERE / "cluster_on_cpu.cuh", sources / "cuda" / "cluster.cuh")
    (folder / "entry.cpp").write_text(entry)
    warnings = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
    compiling = ("-std=c++17", "-O1", "-fPIC", "-fsanitize=alignment", *warnings, "-I.", "-Icsrc", "-c", "entry.cpp")
    for arguments in (compiling, ("-shared", "entry.o", "-o", "kernels.so")):
        done = subprocess.run([compiler, *arguments], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder / "kernels.so"
