"""Fused, exact, twice-differentiable layers and losses for generative models in PyTorch.

`genmod.nn` has modules to put into a model, `genmod.ops` the functions behind them, `genmod.reference` what they
compute. `genmod.backend(name)` forces one implementation; `genmod.explain(op, *args)` says which one a call takes, and
why.
"""

from genmod import nn, ops
from genmod.backends import backend
from genmod.explain import explain
from genmod.swap import SwapReport, accelerate, restore

__version__ = "0.1.0"
__all__ = ["SwapReport", "__version__", "accelerate", "backend", "explain", "nn", "ops", "restore"]
