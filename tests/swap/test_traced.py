"""torch.jit.trace of accelerated models, as whoever deploys one calls it: with gradients on, and parameters that need
them. It checks its graph by a second one, made without."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import genmod
from genmod import nn as layers


def generator() -> tuple[nn.Module, Tensor]:
    made = [nn.ConvTranspose2d(16, 64, 4, 1, 0, bias=False), nn.BatchNorm2d(64), nn.ReLU(True)]
    made += [nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(True)]
    return nn.Sequential(*made, nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh()), torch.randn(2, 16, 1, 1)


def critic() -> tuple[nn.Module, Tensor]:
    made = [nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2, True), nn.Conv2d(64, 128, 4, 2, 1), nn.BatchNorm2d(128)]
    return nn.Sequential(*made, nn.LeakyReLU(0.2, True), nn.Conv2d(128, 1, 4)), torch.randn(2, 3, 16, 16)


def decoder() -> tuple[nn.Module, Tensor]:
    made = [nn.GroupNorm(4, 16), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(16, 32, 3, 1, 1)]
    return nn.Sequential(*made, nn.GroupNorm(4, 32), nn.SiLU(), nn.Conv2d(32, 3, 3, 1, 1)), torch.randn(2, 16, 8, 8)


def autoencoder_kl() -> tuple[nn.Module, Tensor]:
    models = pytest.importorskip("diffusers").models
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    whole = models.AutoencoderKL(block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, **blocks)
    return whole.decoder, torch.randn(2, 4, 8, 8)


def attention() -> tuple[nn.Module, Tensor]:
    return layers.AttentionBlock(32), torch.randn(2, 32, 8, 8)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("make", [generator, critic, decoder, autoencoder_kl, attention])
def test_a_traced_model(make, training):
    torch.manual_seed(0)
    model, x = make()
    model.train(training)
    if make is not attention:
        assert len(genmod.accelerate(model))
    with warnings.catch_warnings():  # that shapes are constants of a graph, and that tracing is deprecated
        warnings.simplefilter("ignore")
        graph = torch.jit.trace(copy.deepcopy(model), x)
    results = []
    for traced in (False, True):
        leaf = x.clone().requires_grad_()
        y = (graph if traced else copy.deepcopy(model))(leaf)
        results.append((y, *torch.autograd.grad(y.square().mean(), leaf)))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)
