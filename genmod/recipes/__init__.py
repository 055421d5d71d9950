"""Things to run: train, compare, draw. `python -m genmod demo` starts here.

The libraries that only recipes need (rich, matplotlib, scikit-learn, scikit-image, Pillow) are the `[train]` extra.
They are imported when a recipe uses them, never at import of genmod.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class RecipeError(Exception):
    """Something the user can put right. The command line prints the message and ends with `exit_code`."""

    exit_code = 2


def need(module: str, extra: str = "train") -> ModuleType:
    """Import a module of the `[train]` extra, or of another, or raise a `RecipeError` that says how to get it."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A package that is there but lacks what it needs itself is another trouble, and its own traceback says more.
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise RecipeError(
            f"this needs the Python package {package!r}; install it with: pip install 'genmod-torch[{extra}]'"
        ) from error


__all__ = ["RecipeError", "need"]
