"""Shared set-up: Triton kernels run on CPU tensors through the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

HAS_GPU = torch.cuda.is_available()

if not HAS_GPU:
    try:
        import genmod.testing.interpreter  # noqa: F401  (before any kernel is imported)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    large = "large" in config.getoption("markexpr")
    for item in items:
        if "gpu" in item.keywords and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if "large" in item.keywords and not large:
            item.add_marker(pytest.mark.skip(reason="needs 14 GB of memory; run with -m large"))
