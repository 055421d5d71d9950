"""Where and with what a result was measured: a number without that is no result."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import genmod
from genmod import _native, measure


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, versions and commit."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "genmod": genmod.__version__,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "instruction_set": _native.instruction_set(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second, read and written, of a copy between tensors of `size` bytes that exist already."""
    source = torch.ones(max(size // 4, 1), device=device)
    target = torch.empty_like(source)
    seconds = measure.interleaved({"copy": lambda: target.copy_(source)}, device, rounds=25, budget=2.0)["copy"]
    return 2 * source.numel() * 4 / statistics.median(seconds)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
