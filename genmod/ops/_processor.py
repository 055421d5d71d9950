"""What the choices between CPU kernels want to know of the processor."""

from __future__ import annotations

from pathlib import Path


def _vendor(description: str = "/proc/cpuinfo") -> str:
    """As Linux has it; elsewhere nothing."""
    try:
        with Path(description).open(encoding="ascii", errors="replace") as lines:
            first = lines.read(512)  # of the first core
    except OSError:
        return ""
    found = [line.partition(":")[2].strip() for line in first.splitlines() if line.startswith("vendor_id")]
    return found[0] if found else ""


_IS_AMD = _vendor() == "AuthenticAMD"


def is_amd() -> bool:
    """Whether AMD made it, on whose processors MKL, but not oneDNN, is at half of the peak."""
    return _IS_AMD
