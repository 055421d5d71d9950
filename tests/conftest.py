"""Shared set-up: Triton kernels run on CPU tensors through the interpreter where there is no GPU."""

from __future__ import annotations

import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
# Tests that share what is slow to make, such as a wheel, run in one worker.
TOGETHER = {"packaging", "kernels"}

if WORKERS > 1:  # together they take the cores that there are, instead of each all of them
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))

if HAS_GPU:
    # TensorFloat-32 in cuDNN, torch's default, has a rounding of its own, a thousand times that of float32; and without
    # a workspace cuBLAS does not promise the same bits twice.
    torch.backends.cudnn.allow_tf32 = False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
else:
    try:
        import genmod.testing.interpreter  # noqa: F401  (before any kernel is imported)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """One test at a time to each worker, but those of a folder in TOGETHER all to one."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder = nodeid.split("::")[0].split("/")[-2]
            return folder if folder in TOGETHER else nodeid

    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    large = "large" in config.getoption("markexpr")
    for item in items:
        if "gpu" in item.keywords and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if "large" in item.keywords and not large:
            item.add_marker(pytest.mark.skip(reason="needs 14 GB of memory; run with -m large"))
