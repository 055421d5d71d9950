"""Comparing a model with what `accelerate` makes of a copy of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import genmod
from genmod.swap import SwapReport
from genmod.swap.classes import Swapped

Call = Callable[[Any], Tensor]


def close(found: Tensor, expected: Tensor, bound: float = 1e-4, what: str = "") -> None:
    """Error relative to the largest value: single values near zero have no digits of their own."""
    assert found.shape == expected.shape and found.dtype == expected.dtype, what
    error = (found - expected).abs().max().item()
    assert error <= bound * expected.abs().max().item() + 1e-7, f"{what}: error {error}"


def gradients(model: nn.Module, call: Call, cotangent: Tensor) -> list[tuple[str, Tensor]]:
    """The parameters' gradients, by name."""
    model.zero_grad(set_to_none=True)
    call(model).backward(cotangent)
    return [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]


def check(stock: nn.Module, call: Call, *, bound: float = 1e-4, allow: tuple[str, ...] = ("exact",)) -> SwapReport:
    """Outputs, gradients, buffers, state_dict and restoring, in evaluation and in training; returns the report."""
    ours = copy.deepcopy(stock)
    keys, parameters = list(stock.state_dict()), [id(p) for p in ours.parameters()]
    report = genmod.accelerate(ours, allow=allow)
    assert report.swaps, report
    assert list(ours.state_dict()) == keys and [id(p) for p in ours.parameters()] == parameters
    assert isinstance(ours, type(stock)) and type(ours).__name__ == type(stock).__name__

    for model in (stock, ours):
        model.eval()
    with torch.no_grad():
        close(call(ours), call(stock), bound, "evaluation")
    for model in (stock, ours):
        model.train()
    expected = call(stock)
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).to(expected.dtype)
    theirs = dict(gradients(stock, call, cotangent))
    # A step more of batch statistics for one than for the other would move the running ones.
    call(ours)
    mine = dict(gradients(ours, call, cotangent))
    assert mine.keys() == theirs.keys()
    largest = max(g.norm().item() for g in theirs.values())
    for name, gradient in theirs.items():
        # Gradients that are zero but for rounding (of a bias in front of a norm) are judged by the model's largest.
        error = (mine[name] - gradient).norm().item()
        assert error <= 10 * bound * gradient.norm().item() + bound * 1e-2 * largest, f"gradient of {name}: {error}"
    for (name, buffer), other in zip(ours.named_buffers(), stock.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-4, atol=1e-5, msg=name)

    round_trip(ours, stock, call, bound)
    genmod.restore(ours)
    assert not any(isinstance(m, Swapped) for m in ours.modules())
    ours.load_state_dict(stock.state_dict())
    ours.eval()
    stock.eval()
    with torch.no_grad():
        assert torch.equal(call(ours), call(stock)), "restored, and not bit-equal"
    return report


def round_trip(ours: nn.Module, stock: nn.Module, call: Call, bound: float) -> None:
    """A state_dict goes from either to the other, and counts at once."""
    with torch.no_grad():
        for p in stock.parameters():
            p.add_(0.01 * torch.randn_like(p))
    for model in (stock, ours):
        model.eval()
    ours.load_state_dict(stock.state_dict())
    with torch.no_grad():
        close(call(ours), call(stock), bound, "after load_state_dict")
    for (name, value), other in zip(ours.state_dict().items(), stock.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
