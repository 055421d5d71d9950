"""Where and with what a result was measured, and what that machine can do at best: a number without that is none."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import genmod
from genmod import _native, measure

#: A copy of more than this is as slow per byte as one of this.
_LARGEST_COPY = 1 << 29


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, versions and commit; nothing that names a folder or a person."""
    checkout = source_checkout()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": git(checkout, "rev-parse", "HEAD") if checkout else None,
        "uncommitted_changes": bool(git(checkout, "status", "--porcelain", "-uno")) if checkout else None,
        "genmod": genmod.__version__,
        "torch": torch.__version__,
        "triton": version("triton"),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "instruction_set": _native.instruction_set(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def source_checkout() -> Path | None:
    """The git checkout that genmod runs from; None for an installed copy, even one inside somebody's repository."""
    package = Path(genmod.__file__).resolve().parent
    top = git(package, "rev-parse", "--show-toplevel")
    return package.parent if top and Path(top).resolve() == package.parent else None


def git(folder: Path, *arguments: str) -> str:
    """What git prints; an empty string where there is no git or it fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def version(name: str) -> str | None:
    """Of an installed distribution."""
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


def last_cache_bytes(device: torch.device) -> int:
    """The largest cache; where the system does not tell, more than most have."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    found = [64 << 20]
    files = list(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    if files:
        texts = [f.read_text().strip() for f in files]
        found = [int(t[:-1]) * units[t[-1]] if t[-1:] in units else int(t) for t in texts]
    return max(found)


def copying(device: torch.device, size: int) -> Callable[[], Any]:
    """A copy between tensors of `size` bytes that exist already: the fastest way to move that many bytes twice."""
    source = torch.ones(min(max(size // 4, 1), _LARGEST_COPY // 4), device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def copied_bytes(size: int) -> int:
    """Bytes that `copying(device, size)` reads and writes."""
    return 8 * min(max(size // 4, 1), _LARGEST_COPY // 4)


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large square matrix product: what the arithmetic can do at best."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = measure.interleaved({"matmul": lambda: torch.mm(a, b, out=out)}, device, rounds=15, budget=2.0)
    return 2 * n**3 / statistics.median(seconds["matmul"])
