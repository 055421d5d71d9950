"""Builds csrc/ a second time, under AddressSanitizer and UndefinedBehaviorSanitizer, for `make stress` to break.

    python -m build_support.sanitized        # prints the library's path

The result lies in build/sanitized and is never installed: GENMOD_LIBRARY names it to a process, which must have the
sanitizer's runtime loaded first (see `environment`). Every instruction set is built, as each reads memory in its way.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .native import Builder, BuildError, Torch, find_compiler

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "sanitized"
LIBRARY = FOLDER / "genmod_C.so"
FLAGS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",  # undefined behaviour ends the process: nobody reads a log of warnings
    "-D_GLIBCXX_ASSERTIONS",  # std::vector's bounds, also inside what it has allocated
    "-O1",
    "-g1",
    "-fno-omit-frame-pointer",
)


def build() -> Path:
    """Compiles what has changed since the last time and returns the library; raises BuildError."""
    torch, compiler = Torch.find(), find_compiler()
    if torch is None or compiler is None:
        raise BuildError("a sanitized build needs torch and a C++ compiler")
    Builder(ROOT, FOLDER / "objects", torch, compiler, None, FLAGS).build(LIBRARY)
    return LIBRARY


def runtime() -> str:
    """What has to be loaded before Python: the sanitizer's own library, as the compiler that built with it finds it,
    and that of C++, whose `throw` the sanitizer looks up while it starts. Empty if they are not there."""
    compiler = find_compiler()
    if compiler is None or sys.platform != "linux":
        return ""
    names = ("libasan.so", "libstdc++.so")
    ask = ([*compiler, f"-print-file-name={name}"] for name in names)
    found = [subprocess.run(command, capture_output=True, text=True).stdout.strip() for command in ask]
    return " ".join(found) if all(map(os.path.isabs, found)) else ""


def environment() -> dict[str, str]:
    """What a Python process needs to run on the sanitized library."""
    return {
        **os.environ,
        "GENMOD_LIBRARY": str(LIBRARY),
        "LD_PRELOAD": runtime(),
        # Python leaks by design, and a tensor of a trillion elements must fail as it does without the sanitizer.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=8192:quarantine_size_mb=64",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


if __name__ == "__main__":
    try:
        print(build())
    except BuildError as error:
        raise SystemExit(f"genmod: {error}") from None
