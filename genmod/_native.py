"""Loads the compiled part of genmod once, and remembers how that went.

A package without it is complete, only slower on the CPU, so nothing here raises. That it was never built is no news:
`reason` says why. That it was built and will not load is a fault of the installation: one warning names the cause.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch  # before the library below, which finds LibTorch's symbols in the process and nowhere else

_FOLDER = Path(__file__).parent


def build_record() -> dict[str, Any]:
    """What the build wrote about itself (see build_support/plan.py); empty when genmod runs from a bare source tree."""
    try:
        return json.loads((_FOLDER / "_build.json").read_text())
    except (OSError, ValueError):
        return {}


def _load() -> tuple[bool, str]:
    named = os.environ.get("GENMOD_LIBRARY")  # another build of csrc/, such as one with sanitizers
    library = Path(named) if named else next((f for f in sorted(_FOLDER.glob("_C.*")) if f.suffix == ".so"), None)
    if library is None:
        why = build_record().get("why_not_native") or "there is no genmod/_C in this installation"
        return False, f"not built: {why}"
    try:
        # Loaded as a plain library: it registers its operators while it loads and has nothing to show to Python.
        torch.ops.load_library(str(library))
        torch.ops.genmod_native.instruction_set()
    except Exception as error:
        reason = f"{library.name} was built but does not load: {error}"
        warnings.warn(
            f"genmod runs without its C++ part, slower on the CPU. {reason}. A new build against the torch in use "
            f"({torch.__version__}) should: pip install --no-build-isolation --force-reinstall --no-deps genmod-torch",
            RuntimeWarning,
            stacklevel=2,
        )
        return False, reason
    return True, ""


loaded: bool
"""Whether the C++ kernels are there."""
reason: str
"""Why they are not; empty when they are."""
loaded, reason = _load()


def instruction_set() -> str:
    """The one that the C++ kernels use: "avx512", "avx2" or "baseline"; "none" without them."""
    return torch.ops.genmod_native.instruction_set() if loaded else "none"


def cuda_built() -> bool:
    """Whether the CUDA C++ kernels were compiled in. Says nothing about a GPU being there."""
    return torch.ops.genmod_native.cuda_built() if loaded else False
