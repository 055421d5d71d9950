"""Runs of normalisation and activation in a Sequential."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import genmod
from genmod.swap.classes import is_swapped


def norms(dim: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.GroupNorm(8, 32),
        nn.SiLU(),
        nn.Conv2d(32, 16, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(True),
    )
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model


@pytest.mark.parametrize("training", [True, False])
def test_equal_outputs_gradients_and_buffers(training: bool):
    stock = norms().train(training)
    model = copy.deepcopy(stock)
    report = genmod.accelerate(model)
    assert [s.pattern for s in report] == ["group_norm_act", "batch_norm_act"]
    assert [s.path for s in report] == ["1-2", "4-5"]
    x = torch.randn(4, 3, 32, 32)
    xs = [x.clone().requires_grad_() for _ in range(2)]
    expected, found = stock(xs[0]), model(xs[1])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    cotangent = torch.randn_like(expected)
    expected.backward(cotangent)
    found.backward(cotangent)
    torch.testing.assert_close(xs[1].grad, xs[0].grad, rtol=1e-4, atol=1e-4)
    for (name, p), q in zip(model.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3, msg=name)
    for (name, b), c in zip(model.named_buffers(), stock.named_buffers(), strict=True):
        torch.testing.assert_close(b, c[1], msg=name)


def test_restore_is_bit_equal_and_leaves_nothing():
    stock = norms().eval()
    model = copy.deepcopy(stock)
    genmod.accelerate(model)
    x = torch.randn(2, 3, 32, 32)
    model(x)
    assert genmod.restore(model) is model
    assert torch.equal(model(x), stock(x))
    for mine, theirs in zip(model.modules(), stock.modules(), strict=True):
        assert type(mine) is type(theirs)
        assert set(vars(mine)) == set(vars(theirs))


def test_deepcopy_and_pickle_stay_swapped():
    model = norms().eval()
    genmod.accelerate(model)
    x = torch.randn(2, 3, 32, 32)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert is_swapped(other) and type(other) is type(model)
        assert torch.equal(other(x), model(x))
        assert type(genmod.restore(other)) is nn.Sequential
