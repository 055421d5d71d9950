"""Fused, exact, twice-differentiable layers and losses for generative models in PyTorch.

`genmod.nn` has modules to put into a model, `genmod.ops` the functions behind them, `genmod.reference` what they
compute. `genmod.accelerate(model)` swaps them into a model that is there, `genmod.compare(model, inputs)` says whether
it is the same and what it gained. `genmod.backend(name)` forces one implementation; `genmod.explain(op, *args)` says
which one a call takes, and why.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from genmod import nn, ops
from genmod.backends import backend
from genmod.explain import explain

if TYPE_CHECKING:
    from genmod.comparison import compare
    from genmod.swap import SwapReport, accelerate, restore

__version__ = "0.1.0"
__all__ = ["SwapReport", "__version__", "accelerate", "backend", "compare", "explain", "nn", "ops", "restore"]

# These need torch.fx, whose import takes as long as all the rest of genmod.
_LATER = {
    "SwapReport": "genmod.swap",
    "accelerate": "genmod.swap",
    "restore": "genmod.swap",
    "compare": "genmod.comparison",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LATER[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
