"""The gate: no call reaches a kernel past it, so that no kernel is replaced under a call's feet."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from genmod import backends, gate
from genmod.specs import specs
from genmod.testing import battery


@pytest.fixture
def seen() -> Iterator[dict[str, bool]]:
    """By dispatcher op: whether all calls that reached its kernel had come through the gate."""
    calls: dict[str, bool] = {}

    def watched(op: str, *args: Any) -> Any:
        calls[op] = calls.get(op, True) and threading.get_ident() in gate._inside
        return backends.implementation("reference", op)(*args)

    library = torch.library.Library("genmod", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for op in backends.ops():
            library.impl(op, functools.partial(watched, op), "CPU", allow_override=True)
    try:
        yield calls
    finally:
        library._destroy()


@pytest.mark.parametrize("name", list(specs()))
@pytest.mark.parametrize("gradients", [False, True], ids=["no_grad", "grad"])
def test_every_way_to_a_kernel_passes_the_gate(name: str, gradients: bool, seen: dict[str, bool]):
    spec = specs()[name]
    for sample in battery.samples(spec, torch.device("cpu"), torch.float32):
        if gradients:
            call, leaves = battery.with_grad(spec, sample)
            outputs = battery.as_tuple(spec.public(*call.args, **call.kwargs))
            if leaves:
                again = spec.gradient_order == 2
                found = torch.autograd.grad(outputs, leaves, battery.cotangents(outputs), create_graph=again)
                total = sum(g.sum() for g in found)
                if again and isinstance(total, torch.Tensor) and total.requires_grad:
                    torch.autograd.grad(total, leaves, allow_unused=True)
        else:
            with torch.no_grad():
                spec.public(*sample.args, **sample.kwargs)
    past = [op for op, through in seen.items() if not through]
    assert not past, f"{name} reaches {', '.join(past)} past the gate"
    # On the CPU plain PyTorch computes what is as small as these samples.
    small = name in ("upsample_conv2d", "conv3x3", "conv4x4")
    assert gradients or small or seen or not spec.dispatcher_ops, f"{name} reached no kernel"
