"""Libraries that some of these tools use, and that `import genmod.latent` does not."""

from __future__ import annotations

import importlib
from types import ModuleType


def need(module: str, extra: str = "train") -> ModuleType:
    """Import a module, or raise a ModuleNotFoundError that says how to get it."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A package that is there but lacks what it needs itself is another trouble, and its own traceback says more.
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        wanted = f"'genmod-torch[{extra}]'" if extra else package
        message = f"this needs the Python package {package!r}; install it with: pip install {wanted}"
        raise ModuleNotFoundError(message, name=error.name) from error
