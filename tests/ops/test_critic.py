"""What the battery cannot know of the critic's activation and convolution: what is computed, and what is not."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn as tnn
from torch.utils._python_dispatch import TorchDispatchMode

from genmod import nn, ops


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_second_derivative_is_none():
    x = torch.randn(4, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.critic_leaky_relu(x).square().sum(), x, create_graph=True)
    y = ops.critic_leaky_relu(x)
    (first,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
    assert not first.requires_grad  # nothing that could be differentiated again: no zeros run anywhere
    assert torch.autograd.grad(grad.sum(), x)[0].abs().sum() > 0  # through the square, which does bend


def test_nan_and_zero_are_on_the_negative_side():
    x = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf")])
    y, mask = torch.ops.genmod.leaky_relu_mask(x, 0.5)
    assert mask.tolist() == [False, False, False, True, False]
    assert y[2].isnan()
    assert y[3] == float("inf")
    assert y[4] == -float("inf")


CONVOLUTIONS = [
    {"stride": 1, "padding": 1},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"stride": 1, "padding": 0, "groups": 2},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_convolution_to_second_order(options, bias):
    groups = options.get("groups", 1)
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4 // groups, 3, 3, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(6, dtype=torch.float64, requires_grad=True) if bias else None
    inputs = [t for t in (x, weight, offset) if t is not None]

    def function(*inputs):
        return ops.critic_conv2d(*inputs, *([None] * (3 - len(inputs))), **options)

    torch.testing.assert_close(function(*inputs), F.conv2d(x, weight, offset, **options))
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_third_order_equals_torch():
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for convolution in (ops.critic_conv2d, F.conv2d):
        y = convolution(x, weight, padding=1).pow(3).sum()
        (first,) = torch.autograd.grad(y, x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), weight, create_graph=True)
        results.append(torch.autograd.grad(second.pow(2).sum(), (x, weight)))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


class Masks(TorchDispatchMode):
    """Which gradients every backward of a convolution was asked for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.append(tuple(args[-1][:2]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "inner"])
def test_only_what_was_asked_for_is_computed(leaf):
    layer = nn.CriticConv2d(3, 4, 3)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    start = x if leaf else x * 2
    y = layer(start)
    with Masks() as masks:
        torch.autograd.grad(y.sum(), x, retain_graph=True)
        torch.autograd.grad(y.sum(), layer.weight, retain_graph=True)
    assert masks.seen == [(True, False), (False, True)]
    y.sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.bias.grad, torch.full((4,), 2.0 * 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_batch_of_one_in_channels_last(groups, dtype):
    """Whose stride says nothing, but ATen's weight gradient of groups relies on it."""
    form = torch.channels_last
    x = torch.randn(1, 4, 3, 3, dtype=dtype).contiguous(memory_format=form).requires_grad_()
    weight = torch.randn(4, 4 // groups, 3, 3, dtype=dtype).contiguous(memory_format=form).requires_grad_()
    found = torch.autograd.grad(ops.critic_conv2d(x, weight, groups=groups).sum(), (x, weight))
    dense = [t.detach().contiguous().requires_grad_() for t in (x, weight)]
    wanted = torch.autograd.grad(torch.nn.functional.conv2d(*dense, groups=groups).sum(), dense)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular"])
def test_layers_are_torchs(padding_mode):
    ours = nn.CriticConv2d(3, 4, 3, stride=2, padding=1, padding_mode=padding_mode)
    theirs = tnn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode=padding_mode)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    same = nn.CriticConv2d(3, 4, 3, padding="same")
    assert same(x).shape == (2, 4, 8, 8)
    for ours, theirs in ((nn.CriticLeakyReLU(), tnn.LeakyReLU()), (nn.CriticReLU(), tnn.ReLU())):
        torch.testing.assert_close(ours(x), theirs(x))
    assert nn.CriticLinear(3, 2).state_dict().keys() == tnn.Linear(3, 2).state_dict().keys()


def test_channels_last_is_kept():
    layer = nn.CriticConv2d(4, 8, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = nn.CriticLeakyReLU()(layer(x))
    (grad,) = torch.autograd.grad(y.sum(), x)
    for t in (y, grad):
        assert t.is_contiguous(memory_format=torch.channels_last)


def test_autocast_and_compile():
    layer = tnn.Sequential(nn.CriticConv2d(3, 4, 3), nn.CriticLeakyReLU(0.2))
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("height", "width", "taps"), list(itertools.product((5, 8), (6, 7), ((1, 3, 3, 1), (1, 2, 1))))
)
def test_blur_keeps_the_mean_and_halves(height, width, taps):
    blur = nn.BlurDownsample(taps)
    x = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    y = blur(x)
    assert y.shape == (2, 3, -(-height // 2), -(-width // 2))
    inside = nn.BlurDownsample(taps)(torch.ones(1, 1, 12, 12, dtype=torch.float64))[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside, torch.ones_like(inside))
    assert not blur.state_dict()
    assert torch.autograd.gradcheck(blur, x, fast_mode=True)


def test_minibatch_standard_deviation():
    x = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    y = nn.MinibatchStdDev(group_size=3, channels=2)(x)
    assert y.shape == (6, 6, 3, 3)
    # Groups take every second sample: 0, 2, 4 and 1, 3, 5; channels 0, 1 and 2, 3 go into one number each.
    for sample, channel in itertools.product(range(6), range(2)):
        group = x[sample % 2 :: 2, 2 * channel : 2 * channel + 2]
        expected = group.std(0, correction=0).mean()
        torch.testing.assert_close(y[sample, 4 + channel], expected.float().double().expand(3, 3), rtol=1e-5, atol=1e-6)
    same = torch.zeros(4, 2, 3, 3, requires_grad=True)
    nn.MinibatchStdDev()(same).sum().backward()
    assert same.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "mentions"),
    [
        (lambda: nn.BlurDownsample((1.0, -1.0)), ("taps", "sum")),
        (lambda: nn.MinibatchStdDev(0), ("group_size", "0")),
        (lambda: nn.MinibatchStdDev(2, 3)(torch.zeros(2, 4, 2, 2)), ("features", "3")),
    ],
)
def test_bad_options(make, mentions):
    with pytest.raises(ValueError) as raised:
        make()
    assert all(m in str(raised.value) for m in mentions)
