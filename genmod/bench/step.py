"""Whole training steps: what an op is worth in the model that it was made for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from genmod.bench.cases import Case

#: Contender name -> function without arguments that takes one step.
Contenders = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Step:
    """A training step, as contenders that do the same work on the same numbers.

    Attributes:
        op: what of genmod it shows.
        name: model, batch and shape.
        make: `(device, dtype) -> contenders`, among them "eager", "compile" where that can run, and "genmod".
        small: the same step at a size that a test can afford; `make` itself if there is none.
        gpu: whether only a GPU takes it, since a CPU would need minutes.
    """

    op: str
    name: str
    make: Callable[[torch.device, torch.dtype], Contenders]
    small: Callable[[torch.device, torch.dtype], Contenders] | None = None
    gpu: bool = False


def case(step: Step, device: torch.device, dtype: torch.dtype) -> Case:
    """A step in the runner's form. Bytes and operations of a whole model are not counted."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    return Case(step.op, step.name, "step", dtype, step.make(device, dtype))


#: How far contenders may be apart, by the norm: sums in another order, and in half precision also rounding in between.
_APART = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def exactly() -> contextlib.AbstractContextManager[Any]:
    """Convolutions in float32 itself: TensorFloat-32, which cuDNN takes by default, would hide a difference."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise AssertionError unless two results are the same but for rounding."""
    error, size = (found.double() - expected.double()).norm().item(), expected.double().norm().item()
    assert error <= _APART[expected.dtype] * size, f"results differ by {error:.3g}, of {size:.3g}"


def agree(stock: nn.Module, eager: Callable[[], Any], ours: nn.Module, step: Callable[[], Any]) -> None:
    """Take one step of each and raise AssertionError unless the parameters' gradients are the same.

    Parameters belong together by name, or, where a module has others, by order. They are compared not element by
    element: an activation that rounding moves across a kink changes a whole pixel's gradient.
    """
    with exactly():
        eager()
        expected = {name: p.grad.clone() if p.grad is not None else None for name, p in stock.named_parameters()}
        step()
    largest = max((e.norm().item() for e in expected.values() if e is not None), default=0.0)
    found = dict(ours.named_parameters())
    names = found if found.keys() == expected.keys() else expected
    for (name, p), other in zip(found.items(), names, strict=True):
        e = expected[other]
        if e is None or p.grad is None:
            # No gradient and one of zeros say the same: biases do not enter a penalty alone.
            assert not any(t is not None and t.any() for t in (e, p.grad)), f"{name}: only one has a gradient"
            continue
        error = (p.grad - e).norm().item()
        bound = _APART[p.dtype] * (e.norm().item() + 1e-2 * largest)
        assert error <= bound, f"{name}: gradients differ by {error:.3g}, of {e.norm().item():.3g}"
