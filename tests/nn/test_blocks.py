"""Residual and attention blocks: against diffusers, and what follows from how they are put together."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from genmod import nn

diffusers_resnet = pytest.importorskip("diffusers.models.resnet")
diffusers_attention = pytest.importorskip("diffusers.models.attention_processor")

FORMS = pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])


class StockResnet(diffusers_resnet.ResnetBlock2D):
    """Without a time embedding."""

    def forward(self, x):
        return super().forward(x, None)


def stock_resnet(inputs, outputs):
    return StockResnet(in_channels=inputs, out_channels=outputs, temb_channels=None, groups=8, eps=1e-6)


def stock_attention(channels):
    return diffusers_attention.Attention(
        channels,
        heads=1,
        dim_head=channels,
        eps=1e-6,
        norm_num_groups=8,
        residual_connection=True,
        bias=True,
        _from_deprecated_attn_block=True,
    )


PAIRS = {
    "resnet": lambda: (nn.ResnetBlock(16, groups=8), stock_resnet(16, 16)),
    "resnet that widens": lambda: (nn.ResnetBlock(16, 24, groups=8), stock_resnet(16, 24)),
    "attention": lambda: (nn.AttentionBlock(16, groups=8), stock_attention(16)),
}
BLOCKS = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())


def randomize(module):
    """Affine parameters of a fresh norm are ones and zeros, which hide mistakes."""
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return module


def same(pair, dtype):
    torch.manual_seed(0)
    ours, stock = (m.to(dtype) for m in pair())
    ours.load_state_dict(randomize(stock).state_dict())
    return ours, stock


def image(*shape, form=torch.contiguous_format, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=form)


def close(mine, theirs, dtype):
    """The same sums in another order."""
    scale = theirs.abs().max().item()
    torch.testing.assert_close(mine, theirs, rtol=0, atol=scale * (1e-12 if dtype == torch.float64 else 2e-5))


@BLOCKS
@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_diffusers(pair, form, dtype):
    ours, stock = same(pair, dtype)
    x = image(2, 16, 7, 9, form=form, dtype=dtype).requires_grad_()
    mine, theirs = ours(x), stock(x)
    close(mine, theirs, dtype)
    g = image(*theirs.shape, form=form, dtype=dtype)
    names = [name for name, _ in stock.named_parameters()]
    expected = dict(zip(["x", *names], torch.autograd.grad(theirs, [x, *stock.parameters()], g)))
    leaves = [x, *(ours.get_parameter(name) for name in names)]
    found = dict(zip(["x", *names], torch.autograd.grad(mine, leaves, g)))
    # A softmax does not change when all keys move alike, so this gradient is zero up to rounding, in both.
    if "to_k.bias" in names:
        expected["to_k.bias"] = found["to_k.bias"].new_zeros(16)
        assert found.pop("to_k.bias").abs().max() <= 1e-4 * expected["to_q.bias"].abs().max()
    for name in found:
        close(found[name], expected[name], dtype)


@BLOCKS
@FORMS
def test_memory_format_is_kept(pair, form):
    ours, _ = same(pair, torch.float32)
    x = image(2, 16, 6, 5, form=form, dtype=torch.float32)
    ours.to(memory_format=form)
    assert ours(x).is_contiguous(memory_format=form)
    with torch.no_grad():
        assert ours(x).is_contiguous(memory_format=form)


@BLOCKS
def test_state_dicts_go_both_ways(pair):
    ours, stock = pair()
    stock.load_state_dict(randomize(ours).state_dict())
    x = image(1, 16, 4, 4, dtype=torch.float32)
    close(ours(x), stock(x), torch.float32)


@BLOCKS
def test_branches_take_a_sum_apart(pair):
    """`branches(x, r)` are the summands of `forward(x + r)`."""
    ours, _ = same(pair, torch.float64)
    x, r = image(2, 16, 5, 4), image(2, 16, 5, 4)
    h, shortcut, bias = ours.branches(x, r)
    assert bias is None  # on a CPU a convolution has added it
    torch.testing.assert_close(h + shortcut, ours(x + r))
    assert not torch.equal(ours.branches(x)[0], h)


@BLOCKS
def test_differentiable_twice(pair):
    ours, _ = same(pair, torch.float64)
    weight = dict(ours.named_parameters())["to_v.weight" if isinstance(ours, nn.AttentionBlock) else "conv1.weight"]
    x = image(1, 16, 2, 2).requires_grad_()
    torch.autograd.gradgradcheck(lambda x, _: ours(x), (x, weight), fast_mode=True)


@BLOCKS
@pytest.mark.parametrize("grad", [True, False])
def test_compiles_in_one_piece(pair, grad):
    ours, _ = same(pair, torch.float32)
    x = image(2, 16, 5, 5, dtype=torch.float32)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(grad):
        close(compiled(x), ours(x), torch.float32)


@BLOCKS
def test_copies_and_pickles(pair):
    ours, _ = same(pair, torch.float32)
    x = image(1, 16, 5, 5, dtype=torch.float32)
    with torch.no_grad():
        expected = ours(x)
        for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert torch.equal(twin(x), expected)
            twin.load_state_dict({name: torch.zeros_like(t) for name, t in twin.state_dict().items()})
            assert not torch.equal(twin(x), expected)
        assert torch.equal(ours(x), expected)


def test_dropout_in_training_only():
    block = randomize(nn.ResnetBlock(16, groups=8, dropout=0.5))
    x = image(1, 16, 6, 6, dtype=torch.float32)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


# Attention without gradients: values and result are projected at once.


def products(block, x, monkeypatch):
    """How often a block projects pixels."""
    calls, linear = [], F.linear
    monkeypatch.setattr(F, "linear", lambda *args: calls.append(args) or linear(*args))
    with torch.no_grad():
        block(x)
    monkeypatch.undo()
    return len(calls)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "projections"), [(4, 4), (5, 3)], ids=["as many pixels as channels", "more"])
def test_the_fold_is_exact_and_pays(dtype, size, projections, monkeypatch):
    ours, stock = same(PAIRS["attention"], dtype)
    x = image(1, 16, size, size, dtype=dtype)
    with torch.no_grad():
        close(ours(x), stock(x), dtype)
    assert products(ours, x, monkeypatch) == projections


@pytest.mark.parametrize("name", ["to_v.weight", "to_v.bias", "to_out.0.weight", "to_out.0.bias"])
@pytest.mark.parametrize("way", ["in place", "through .data", "replaced", "loaded", "fused optimizer"])
def test_the_fold_follows_the_weights(name, way):
    ours, stock = same(PAIRS["attention"], torch.float64)
    x = image(1, 16, 5, 5)
    owner, _, leaf = name.rpartition(".")
    with torch.no_grad():
        ours(x)
        for block in (ours, stock):
            p = block.get_parameter(name)
            if way == "in place":
                p.mul_(-2)
            elif way == "through .data":
                p.data.mul_(-2)
            elif way == "replaced":
                setattr(block.get_submodule(owner), leaf, torch.nn.Parameter(-2 * p))
            elif way == "loaded":
                block.load_state_dict({**block.state_dict(), name: -2 * p})
            else:
                p.grad = torch.ones_like(p)
                torch.optim.SGD([p], lr=0.5, fused=True).step()
        close(ours(x), stock(x), torch.float64)


def test_the_fold_is_summed_in_float32():
    ours, _ = same(PAIRS["attention"], torch.float64)
    x = image(1, 16, 6, 6, dtype=torch.bfloat16)
    ours.to(torch.bfloat16)
    exact = copy.deepcopy(ours).double()
    with torch.no_grad():
        folded = (ours(x).double() - exact(x.double())).abs().mean()
    plain = (ours(x).double() - exact(x.double())).abs().mean()
    assert folded <= 2 * plain


def test_autocast():
    ours, stock = same(PAIRS["attention"], torch.float32)
    x = image(1, 16, 6, 6, dtype=torch.float32)
    with torch.no_grad():
        exact = stock(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mine, theirs = ours(x), stock(x)
    assert (mine - exact).abs().mean() <= 2 * (theirs - exact).abs().mean()


# The first block of DCGAN.


@FORMS
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"stride": 3}, {"padding": 1}, {"groups": 2}])
def test_transposed_convolution_of_one_pixel(form, options):
    options = {"stride": 1, "padding": 0, **options}
    block = nn.ConvTransposeBlock(6, 4, 4, **options, dtype=torch.float64).to(memory_format=form)
    conv = block.conv
    x = image(3, 6, 1, 1).requires_grad_()
    expected = F.conv_transpose2d(
        x, conv.weight, conv.bias, conv.stride, conv.padding, conv.output_padding, conv.groups
    )
    found = conv(x)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=form)
    g, leaves = torch.randn_like(found), [x, *conv.parameters()]
    for mine, theirs in zip(torch.autograd.grad(found, leaves, g), torch.autograd.grad(expected, leaves, g)):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.ResnetBlock(16, groups=5), "groups: got 5, expected a divisor of in_channels=16"),
        (lambda: nn.ResnetBlock(16, 12, groups=8), "groups: got 8, expected a divisor of out_channels=12"),
        (lambda: nn.ResnetBlock(16, groups=0), "groups: got 0"),
        (lambda: nn.ResnetBlock(16, groups=8, activation="mish"), "activation: got 'mish'"),
        (lambda: nn.ResnetBlock(16, groups=8, dropout=1.5), "dropout"),
        (lambda: nn.AttentionBlock(12, groups=8), "groups: got 8, expected a divisor of channels=12"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
