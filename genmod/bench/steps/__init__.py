"""The training steps of the suite `models`: every module here that has a tuple `STEPS` takes part. No list to keep."""

from __future__ import annotations

import importlib
import pkgutil

from genmod.bench.step import Step


def all_steps() -> tuple[Step, ...]:
    """Every step of every module in this package."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return tuple(step for module in modules for step in getattr(module, "STEPS", ()))
