"""``genmod doctor``: what is installed, what this machine has, and which backends work or why they do not."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from genmod import _native, backends


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def main(args: argparse.Namespace) -> int:
    report = examine()
    print(json.dumps(report, indent=2) if args.json else render(report))
    return 0


def examine() -> dict[str, Any]:
    """The whole report, as plain data."""
    return {
        "versions": versions(),
        "cpu": cpu(),
        "gpus": gpus(),
        "backends": [
            {"name": name, "available": available, "reason": reason} for name, available, reason in backends.status()
        ],
        "build": _native.build_record(),
    }


def versions() -> dict[str, str]:
    return {
        "genmod": distribution("genmod-torch"),
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "torch": torch.__version__,
        "triton": distribution("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-windows"),
        "numpy": distribution("numpy"),
        "CUDA": torch.version.cuda or "torch was built without it",
        "C++ compiler": first_line(os.environ.get("CXX", "c++"), "--version"),
        "nvcc": last_line(os.environ.get("GENMOD_NVCC", "nvcc"), "--version"),
    }


def distribution(*names: str) -> str:
    """The version of the first of these distributions that is installed. Imports none of them."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def output_of(*command: str) -> list[str]:
    if shutil.which(command[0]) is None:
        return ["not found"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"does not run: {error}"]
    return done.stdout.strip().splitlines() or [f"does not run: {done.stderr.strip()}"]


def first_line(*command: str) -> str:
    return output_of(*command)[0]


def last_line(*command: str) -> str:
    return output_of(*command)[-1]


def cpu() -> dict[str, Any]:
    return {
        "model": cpu_model(),
        "cores": os.cpu_count(),
        "threads torch uses": torch.get_num_threads(),
        "instruction set of torch": torch.backends.cpu.get_cpu_capability(),
        "instruction set of genmod's C++": _native.instruction_set(),
        "ATEN_CPU_CAPABILITY": os.environ.get("ATEN_CPU_CAPABILITY", "not set"),
    }


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return models[0] if models else platform.machine()
    if sys.platform == "darwin":
        return first_line("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or platform.machine()


def gpus() -> list[dict[str, Any]]:
    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        row = {"name": device.name, "compute capability": f"{device.major}.{device.minor}"}
        found.append(row | {"memory (GiB)": round(device.total_memory / 2**30, 1)})
    return found


def render(report: dict[str, Any]) -> str:
    sections = [table("Versions", report["versions"]), table("CPU", report["cpu"])]
    for index, gpu in enumerate(report["gpus"]):
        sections.append(table(f"GPU {index}", gpu))
    if not report["gpus"]:
        sections.append("GPU\n  none that torch can use")
    states = {b["name"]: "yes" if b["available"] else f"no: {b['reason']}" for b in report["backends"]}
    sections.append(table("Backends", states))
    if report["build"]:
        sections.append(table("Compiled part", build_lines(report["build"])))
    return "\n\n".join(sections)


def build_lines(record: dict[str, Any]) -> dict[str, str]:
    with_native = f"yes, for {', '.join(record['instruction_sets'])}, against torch {record['torch']}"
    with_cuda = f"yes, for sm_{', sm_'.join(record['cuda_archs'])}"
    return {
        "C++": with_native if record["native"] else f"no: {record['why_not_native']}",
        "CUDA": with_cuda if record["cuda"] else f"no: {record['why_not_cuda']}",
    }


def table(title: str, rows: dict[str, Any]) -> str:
    """One row a line, the values in a column of their own, also where a value (a compiler's message) has many lines."""
    width = max(map(len, rows), default=0)
    margin = "\n" + " " * (width + 4)
    lines = [f"  {name:<{width}}  {margin.join(str(value).splitlines())}" for name, value in rows.items()]
    return "\n".join([title, *lines])
