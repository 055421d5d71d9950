"""Runs of modules in a Sequential: each run that the table has, and what keeps it from being taken."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import genmod

from .common import check

ACTS = [nn.SiLU(), nn.ReLU(True), nn.LeakyReLU(0.2), nn.GELU(), nn.Tanh(), nn.Sigmoid()]


def randomised(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(*layers)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.dim() == 1:
            value.uniform_(0.5, 2.0) if "var" in name else value.normal_(std=0.5)
    return model


def images(model: nn.Module) -> torch.Tensor:
    x = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    return model(x)


@pytest.mark.parametrize("act", ACTS, ids=lambda act: type(act).__name__)
def test_group_norm_and_activation(act: nn.Module):
    model = randomised(nn.Conv2d(4, 32, 3, padding=1), nn.GroupNorm(8, 32), act, nn.Conv2d(32, 8, 1))
    assert [s.pattern for s in check(model, images)] == ["group_norm_act"]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_and_activation(affine: bool, momentum: float | None):
    norm = nn.BatchNorm2d(32, affine=affine, momentum=momentum)
    model = randomised(nn.Conv2d(4, 32, 1), nn.Dropout(0.0), norm, nn.ReLU())
    assert [s.pattern for s in check(model, images)] == ["batch_norm_act"]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_convolution_and_batch_norm(groups: int, bias: bool, padding_mode: str):
    conv = nn.Conv2d(4, 32, 3, padding=1, groups=groups, bias=bias, padding_mode=padding_mode)
    model = randomised(conv, nn.BatchNorm2d(32), nn.SiLU(), nn.Conv2d(32, 8, 1), nn.BatchNorm2d(8))
    assert [s.pattern for s in check(model, images)] == ["conv_bn_act", "conv_bn"]


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution_and_batch_norm(groups: int):
    conv = nn.ConvTranspose2d(4, 32, 4, 2, 1, groups=groups, bias=True)
    model = randomised(conv, nn.BatchNorm2d(32), nn.LeakyReLU(0.2))
    assert [s.pattern for s in check(model, images)] == ["conv_transpose_bn_act"]


@pytest.mark.parametrize("act", [(), (nn.ReLU(True),), (nn.BatchNorm2d(8), nn.SiLU())], ids=len)
def test_upsampling_and_convolution(act: tuple[nn.Module, ...]):
    model = randomised(nn.Upsample(scale_factor=2), nn.Conv2d(4, 8, 3, padding=1), *act)
    found = [s.pattern for s in check(model, images)]
    assert found == [["upsample_conv"], ["upsample_conv_act"], ["upsample_conv", "batch_norm_act"]][len(act)]


def test_running_statistics_and_loaded_weights_count_in_evaluation():
    """Folded or not: nothing derived from a weight is kept."""
    stock = randomised(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    ours = copy.deepcopy(stock)
    genmod.accelerate(ours)
    optimisers = [torch.optim.SGD(m.parameters(), 0.1) for m in (stock, ours)]
    for _ in range(2):
        for model, optimiser in zip((stock, ours), optimisers, strict=True):
            model.train()
            optimiser.zero_grad()
            images(model).square().mean().backward()
            optimiser.step()
            model.eval()
            model[0].weight.data.mul_(1.1)  # unseen by version counters
        with torch.no_grad():
            torch.testing.assert_close(images(ours), images(stock), rtol=1e-4, atol=1e-5)


def test_dcgan():
    layers: list[nn.Module] = [nn.ConvTranspose2d(8, 32, 4, 1, 0, bias=False), nn.BatchNorm2d(32), nn.ReLU(True)]
    layers += [nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True)]
    model = randomised(*layers, nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False), nn.Tanh())
    for module in model.modules():
        if isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.05)
    z = torch.randn(8, 8, 1, 1)
    found = [s.pattern for s in check(model, lambda m: m(z))]
    assert found == ["conv_transpose_bn_act", "conv_transpose_bn_act", "bias_act", "conv_transpose4x4"]


def test_batches_that_stock_refuses_are_refused():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()).train()
    genmod.accelerate(model)
    with pytest.warns(UserWarning, match="one value per channel"), pytest.raises(ValueError, match="more than 1 value"):
        model(torch.randn(1, 4))
    model.eval()
    with pytest.warns(UserWarning, match="an input of shape"), pytest.raises(RuntimeError):
        model(torch.randn(2, 5))
