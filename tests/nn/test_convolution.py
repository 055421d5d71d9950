"""Convolutions that leave their bias to what follows: on the CPU, where that is asked for by the test alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genmod import nn as gnn
from genmod.nn import convolution


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(convolution, "_bias_is_a_pass", lambda x: True)


def test_the_bias_is_apart():
    x = torch.randn(2, 4, 5, 5)
    for conv in (nn.Conv2d(4, 6, 3, padding=1), gnn.UpsampleConv2d(4, 6)):
        y, bias = convolution.without_bias(conv, x)
        assert bias is conv.bias
        torch.testing.assert_close(y + bias.view(1, -1, 1, 1), conv(x))


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    conv = nn.Conv2d(4, 6, 3)
    conv.register_forward_hook(lambda module, args, y: 2 * y)
    return conv


def replaced():
    conv = nn.Conv2d(4, 6, 3)
    conv.forward = lambda x: 2 * x[:, :1]
    return conv


@pytest.mark.parametrize(
    "make",
    [
        lambda: Doubled(4, 6, 3),
        hooked,
        replaced,
        lambda: nn.Conv2d(4, 6, 3, bias=False),
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)),
        lambda: gnn.UpsampleConv2d(4, 6, activation="relu"),
    ],
    ids=["subclass", "hook", "forward of its own", "no bias", "parametrised", "activation"],
)
def test_what_is_more_than_a_convolution_is_called(make):
    conv, x = make(), torch.randn(2, 4, 5, 5)
    y, bias = convolution.without_bias(conv, x)
    assert bias is None
    torch.testing.assert_close(y, conv(x))


@pytest.mark.parametrize("training", [False, True])
def test_a_decoder_is_the_same(monkeypatch, training):
    decoder = gnn.Decoder(gnn.DecoderConfig.autoencoder_kl((32, 64, 64)), dtype=torch.float64).train(training)
    for p in decoder.parameters():
        nn.init.normal_(p, std=0.3)
    z = torch.randn(2, 4, 3, 5, dtype=torch.float64)

    def run():
        decoder.zero_grad()
        with torch.set_grad_enabled(training):
            image = decoder(z)
        if training:
            image.square().mean().backward()
        return [image.detach(), *(p.grad.clone() for p in decoder.parameters() if p.grad is not None)]

    found = run()
    monkeypatch.setattr(convolution, "_bias_is_a_pass", lambda x: False)
    expected = run()
    largest = max(e.abs().max().item() for e in expected[1:]) if training else 0.0
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-11 * largest + 1e-12)


def test_a_residual_block_has_a_second_derivative():
    block = gnn.ResnetBlock(4, 8, groups=2, dtype=torch.float64)
    x = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradgradcheck(lambda x, _: block(x), (x, block.conv1.bias), fast_mode=True)
