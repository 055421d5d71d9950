"""The upsample_conv family: what the battery cannot know."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import genmod
from genmod import _native, nn, ops

NATIVE = pytest.mark.skipif(not _native.loaded, reason=f"no C++ kernels: {_native.reason}")
FORMS = pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])


@pytest.fixture(autouse=True)
def never_stock():
    """The kernels run, also where a call is so small that stock PyTorch would be taken."""
    with genmod.backend("cpp" if _native.loaded else "reference"):
        yield


def stock(x, weight, bias=None, groups=1):
    """Upsample, then convolve."""
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1, groups=groups)


def drawn(*shape, form=torch.contiguous_format, dtype=torch.float64):
    t = torch.randn(shape, dtype=dtype)
    return t.contiguous(memory_format=form) if t.dim() == 4 else t


# upsample_conv2d.


@FORMS
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("shape", "outputs"),
    [
        *(((3, 8, 13, 7), 6), ((2, 4, 40, 1030), 2), ((1, 2, 700, 3), 1050), ((1, 64, 33, 31), 130)),
        *(((37, 6, 4, 5), 34), ((2, 32, 19, 17), 48), ((3, 90, 8, 8), 1300), ((5, 100, 2, 2), 300)),
    ],
    ids=[
        *("odd", "wider than a line", "many rows, more channels than a line", "several tiles", "samples in a tile"),
        *("whole vectors of channels", "by taps, several tiles", "by taps, samples in a tile"),
    ],
)
def test_every_way_of_cutting_the_work(form, groups, shape, outputs):
    outputs *= groups
    x, g = drawn(*shape, form=form), drawn(shape[0], outputs, 2 * shape[2], 2 * shape[3], form=form)
    w, b = drawn(outputs, shape[1] // groups, 3, 3, form=form), drawn(outputs)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    ours, expected = ops.upsample_conv2d(*leaves, groups=groups), stock(*leaves, groups)
    torch.testing.assert_close(ours, expected)
    for mine, theirs in zip(torch.autograd.grad(ours, leaves, g), torch.autograd.grad(expected, leaves, g)):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@FORMS
def test_half_precision_is_rounded_once(form, dtype):
    x, w, b = drawn(3, 70, 9, 8, form=form).to(dtype), (0.1 * drawn(66, 70, 3, 3, form=form)).to(dtype), None
    exact = stock(x.double(), w.double(), b)
    half_an_ulp = 0.5 * torch.finfo(dtype).eps * exact.abs().max()
    assert (ops.upsample_conv2d(x, w, b).double() - exact).abs().max() <= 1.01 * half_an_ulp


def test_a_weight_in_another_memory_format_than_x():
    x, w = drawn(2, 5, 4, 3), drawn(4, 5, 3, 3, form=torch.channels_last)
    y = ops.upsample_conv2d(x, w)
    torch.testing.assert_close(y, stock(x, w))
    assert y.is_contiguous()
    last = x.contiguous(memory_format=torch.channels_last)
    y = ops.upsample_conv2d(last, w.contiguous())
    torch.testing.assert_close(y, stock(x, w))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_a_weight_in_a_memory_format_of_its_own():
    """In a small call, where stock PyTorch is taken, whose gradient of such a weight is an error."""
    x = torch.randn(1, 2, 2, 2)
    weight = torch.empty_strided((1, 2, 3, 3), (1, 1, 6, 2)).normal_().requires_grad_()
    dense = weight.detach().contiguous().clone().requires_grad_()
    found, expected = (torch.autograd.grad(ops.upsample_conv2d(x, w).square().sum(), w) for w in (weight, dense))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid"])
def test_activations_with_and_without_gradients(activation):
    x, w, b = drawn(2, 3, 4, 5), drawn(4, 3, 3, 3), drawn(4)
    options = {"negative_slope": 0.2} if activation == "leaky_relu" else {}
    expected = getattr(F, activation)(stock(x, w, b), *options.values())
    torch.testing.assert_close(ops.upsample_conv2d(x, w, b, activation=activation, **options), expected)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    ours = ops.upsample_conv2d(*leaves, activation=activation, **options)
    expected = getattr(F, activation)(stock(*leaves), *options.values())
    torch.testing.assert_close(ours, expected)
    g = torch.randn_like(ours)
    for mine, theirs in zip(torch.autograd.grad(ours, leaves, g), torch.autograd.grad(expected, leaves, g)):
        torch.testing.assert_close(mine, theirs)


@FORMS
@pytest.mark.parametrize("groups", [1, 4])
def test_small_calls_take_stock(form, groups):
    x, w = drawn(1, 4, 3, 3, form=form).requires_grad_(), drawn(4, 4 // groups, 3, 3).requires_grad_()
    with genmod.backend("auto"):
        y = ops.upsample_conv2d(x, w, groups=groups)
    assert type(y.grad_fn).__name__ in ("ConvolutionBackward0", "CloneBackward0")  # not one of ours
    assert y.is_contiguous(memory_format=form)
    torch.testing.assert_close(y, stock(x, w, groups=groups))


def test_third_derivatives():
    x, w = drawn(1, 2, 2, 2).requires_grad_(), drawn(2, 2, 3, 3).requires_grad_()

    def third(function):
        (first,) = torch.autograd.grad(function(x, w).pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), w, create_graph=True)
        return torch.autograd.grad(second.pow(2).sum(), (x, w))

    for mine, theirs in zip(third(ops.upsample_conv2d), third(stock)):
        torch.testing.assert_close(mine, theirs)


def test_functorch():
    x, w = drawn(3, 2, 3, 3), drawn(2, 2, 3, 3)

    def loss(function):
        return lambda w, x: function(x[None], w).square().sum()

    ours = torch.func.vmap(torch.func.grad(loss(ops.upsample_conv2d)), (None, 0))(w, x)
    torch.testing.assert_close(ours, torch.func.vmap(torch.func.grad(loss(stock)), (None, 0))(w, x))


def test_on_meta_tensors():
    y = ops.upsample_conv2d(torch.empty(2, 4, 3, 5, device="meta"), torch.empty(6, 4, 3, 3, device="meta"))
    assert y.shape == (2, 6, 6, 10) and y.device.type == "meta"


@NATIVE
def test_the_upsampled_image_is_never_there():
    from genmod.measure import peak_bytes

    x, w = torch.randn(8, 64, 32, 32), torch.randn(64, 64, 3, 3)
    cpu = torch.device("cpu")
    assert peak_bytes(lambda: ops.upsample_conv2d(x, w), cpu) < 0.8 * peak_bytes(lambda: stock(x, w), cpu)


@pytest.mark.large
def test_more_than_two_to_the_31_outputs():
    x, w = torch.randn(1, 1, 1 << 15, (1 << 14) + 3), torch.randn(1, 1, 3, 3)
    y = ops.upsample_conv2d(x, w)
    assert y.numel() > 1 << 31
    torch.testing.assert_close(y[..., -64:, -64:], stock(x[..., -33:, -33:], w)[..., -64:, -64:])


# UpsampleConv2d.


def pair(**options):
    """A stock pair of modules and ours, with the same parameters."""
    conv = torch.nn.Conv2d(6, 4, 3, padding=1, **options)
    ours = nn.UpsampleConv2d(6, 4, **options)
    ours.load_state_dict(conv.state_dict(), strict=True)
    return torch.nn.Sequential(torch.nn.Upsample(scale_factor=2), conv), ours


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"bias": False}], ids=str)
def test_a_convolutions_checkpoint_loads(options):
    theirs, ours = pair(**options)
    x = torch.randn(2, 6, 5, 3)
    torch.testing.assert_close(ours(x), theirs(x))
    assert list(ours.state_dict()) == list(theirs[1].state_dict())


def test_the_same_initialisation():
    torch.manual_seed(3)
    conv = torch.nn.Conv2d(6, 4, 3, padding=1)
    torch.manual_seed(3)
    assert torch.equal(nn.UpsampleConv2d(6, 4).weight, conv.weight)


def test_diffusers_upsampling():
    diffusers = pytest.importorskip("diffusers.models.upsampling")
    theirs = diffusers.Upsample2D(8, use_conv=True, out_channels=8)
    ours = nn.UpsampleConv2d(8, 8)
    ours.load_state_dict(theirs.conv.state_dict())
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_every_change_of_the_weight_is_seen(mode):
    theirs, ours = pair()
    getattr(ours, mode)()
    x = torch.randn(1, 6, 3, 3)
    weight, conv = ours.weight, theirs[1]

    def same():
        conv.load_state_dict(ours.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x))

    same()
    ours(x).sum().backward()
    torch.optim.SGD([weight], lr=0.5).step()
    same()
    ours.load_state_dict({k: 2 * v for k, v in ours.state_dict().items()})
    same()
    weight.data.mul_(0.3)  # an old-fashioned moving average, which no version counter sees
    same()
    weight.data = torch.randn_like(weight)
    same()
    with torch.no_grad():
        weight[0, 0, 1, 1] += 1
    same()
    ours.weight = torch.nn.Parameter(torch.randn_like(weight))
    same()


@pytest.mark.parametrize("remake", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(remake):
    _, ours = pair()
    x = torch.randn(1, 6, 3, 3)
    expected = ours.eval()(x)
    again = remake(ours)
    assert torch.equal(again(x), expected)
    with torch.no_grad():
        again.weight.zero_()
    assert torch.equal(ours(x), expected)


def test_parametrized():
    theirs, ours = pair()
    torch.manual_seed(0)
    torch.nn.utils.parametrizations.spectral_norm(ours)
    torch.manual_seed(0)
    torch.nn.utils.parametrizations.spectral_norm(theirs[1])
    x = torch.randn(1, 6, 3, 3)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("activation", ["identity", "silu"])
def test_compiled_and_exported(activation):
    torch._dynamo.reset()
    ours = nn.UpsampleConv2d(6, 4, activation=activation)
    x = torch.randn(2, 6, 3, 5)
    expected = ours(x)
    compiled = torch.compile(ours, fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    g = torch.randn_like(expected)
    grads = torch.autograd.grad(expected, list(ours.parameters()), g)
    for mine, theirs in zip(torch.autograd.grad(compiled(x), list(ours.parameters()), g), grads):
        torch.testing.assert_close(mine, theirs)
    exported = torch.export.export(ours.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), expected)


def test_compiled_functional_gradient():
    torch._dynamo.reset()
    x, w = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 3, 3)

    def gradient(function):
        return torch.func.grad(lambda w: function(x, w).square().sum())

    compiled = torch.compile(gradient(ops.upsample_conv2d), fullgraph=True)
    torch.testing.assert_close(compiled(w), gradient(stock)(w), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("kernel_size", 5), ("stride", 2), ("padding", 0), ("dilation", 2), ("padding_mode", "reflect")],
)
def test_what_is_not_covered(argument, value):
    with pytest.raises(ValueError, match=f"{argument}: got {value!r}, expected .* covered is a 3x3 kernel"):
        nn.UpsampleConv2d(4, 4, **{argument: value})


def test_what_is_covered():
    for padding in (1, (1, 1), "same"):
        assert nn.UpsampleConv2d(4, 4, (3, 3), 1, padding)(torch.zeros(1, 4, 2, 2)).shape == (1, 4, 4, 4)


# conv_transpose2d_norm_act and the blocks.


@FORMS
def test_a_dcgan_block_trains_as_stock(form):
    torch.manual_seed(0)
    ours = nn.ConvTransposeBlock(6, 4).double().to(memory_format=form)
    theirs = (
        torch.nn.Sequential(
            torch.nn.ConvTranspose2d(6, 4, 4, 2, 1, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
        )
        .double()
        .to(memory_format=form)
    )
    theirs.load_state_dict({k.replace("conv", "0").replace("norm", "1"): v for k, v in ours.state_dict().items()})
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (ours, theirs)]
    for _ in range(3):
        x = drawn(5, 6, 3, 4, form=form)
        for module, optimizer in zip((ours, theirs), optimizers):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values()):
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_running_statistics_move_as_stock():
    x, w, bias = drawn(4, 3, 5, 5), drawn(3, 2, 4, 4), drawn(2)
    mean, var = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    expected_mean, expected_var = mean.clone(), var.clone()
    ops.conv_transpose2d_norm_act(x, w, mean, var, training=True, momentum=0.3, bias=bias)
    F.batch_norm(F.conv_transpose2d(x, w, bias, 2, 1), expected_mean, expected_var, training=True, momentum=0.3)
    torch.testing.assert_close(mean, expected_mean)
    torch.testing.assert_close(var, expected_var)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_an_upsampling_block(norm):
    block = nn.UpsampleBlock(6, 8, norm=norm, activation="leaky_relu", num_groups=4)
    x = torch.randn(3, 6, 4, 3)
    y = stock(x, block.conv.weight, block.conv.bias)
    if norm == "batch":
        y = F.batch_norm(y, None, None, block.norm.weight, block.norm.bias, training=True)
    elif norm == "group":
        y = F.group_norm(y, 4, block.norm.weight, block.norm.bias)
    torch.testing.assert_close(block(x), F.leaky_relu(y, 0.2), rtol=1e-4, atol=1e-5)
    assert (block.conv.bias is None) == (norm == "batch")


def test_an_unknown_norm():
    with pytest.raises(ValueError, match="norm: got 'instance', expected 'batch', 'group' or 'none'"):
        nn.UpsampleBlock(4, 4, norm="instance")
