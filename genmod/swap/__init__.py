"""Swap fast layers into any model, in place and reversibly: `accelerate`, `restore`, and the report of what was done.

A swapped module stays the object that it was. Its class becomes a subclass of its own class, made of that class and a
mixin of this package, so that parameters, buffers, hooks, optimisers, wrappers and `isinstance` see no difference.
"""

from genmod.swap.engine import accelerate, restore
from genmod.swap.pattern import ALLOW
from genmod.swap.report import LeftAlone, Swap, SwapReport

__all__ = ["ALLOW", "LeftAlone", "Swap", "SwapReport", "accelerate", "restore"]
