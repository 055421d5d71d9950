"""Calls of the C++ kernels give back all memory that they take. Python's own tools do not see what C++ allocates."""

from __future__ import annotations

import ctypes
import gc
import itertools

import pytest
import torch

import genmod
from genmod import backends
from genmod.specs import specs
from genmod.testing import battery

CALLS = 300


class _Statistics(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    ]


def _bytes_in_use() -> int:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("needs mallinfo2, of glibc 2.33 or later")
    libc.mallinfo2.restype = _Statistics
    gc.collect()
    statistics = libc.mallinfo2()
    return statistics.uordblks + statistics.hblkhd


@pytest.mark.parametrize("spec", [s for s in specs().values() if s.dispatcher_ops], ids=lambda s: s.name)
def test_memory_comes_back(spec):
    if not all(backends.has_kernel("cpp", op) for op in spec.dispatcher_ops):
        pytest.skip("no C++ kernel")
    with genmod.backend("cpp"):
        for sample in itertools.islice(spec.samples(torch.device("cpu"), torch.float32), 3):
            battery.values_and_grads(spec.public, spec, sample)
            grown = []
            for _ in range(3):  # what is made once, and caches, may come with any of the first calls
                before = _bytes_in_use()
                for _ in range(CALLS):
                    battery.values_and_grads(spec.public, spec, sample)
                grown.append((_bytes_in_use() - before) / CALLS)
            assert min(grown) < 8, f"{sample.name}: {grown} bytes a call are not given back"
