"""The CPU's convolutions by matrix product: the same numbers as ATen's, whatever the geometry and layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from genmod import ops
from genmod.ops import _convolution, _processor
from genmod.ops._convolution import Geometry, convolution, input_gradient, weight_gradient
from genmod.ops.upsample_conv import conv_transpose2d

# Kernel, stride, padding and input size such that all three maps take the product.
WALKS = [
    ((4, 4), (2, 2), (1, 1), (8, 8)),
    ((3, 3), (1, 1), (1, 1), (4, 4)),
    ((3, 2), (2, 1), (0, 1), (7, 3)),
    ((4, 4), (1, 1), (0, 0), (4, 4)),
    ((1, 1), (2, 2), (0, 0), (5, 7)),
]


@pytest.fixture(autouse=True)
def products_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made this processor."""
    monkeypatch.setattr(_convolution, "is_amd", lambda: False)


def draw(*shape: int, dtype: torch.dtype, last: bool = False) -> Tensor:
    t = torch.randn(shape, dtype=torch.float64).to(dtype)
    return t.contiguous(memory_format=torch.channels_last) if last else t


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("walk", WALKS, ids=str)
def test_all_three_maps_are_those_of_aten(walk, last: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_convolution, "_PART", 1 << 15)  # so that a batch has several parts
    kernel, stride, padding, size = walk
    torch.manual_seed(0)
    x, weight, bias = (
        draw(5, 128, *size, dtype=dtype, last=last),
        draw(144, 128, *kernel, dtype=dtype),
        draw(144, dtype=dtype),
    )
    geometry = Geometry(stride, padding, (1, 1), 1)
    assert _convolution._product_is_faster(True, x, weight.shape, geometry)
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), *geometry)
    grad = draw(*exact.shape, dtype=dtype, last=last)
    mask = [True, True, False]
    to_x, to_weight, _ = torch.ops.aten.convolution_backward(
        grad.double(), x.double(), weight.double(), None, stride, padding, (1, 1), False, (0, 0), 1, mask
    )
    stock = torch.nn.functional.conv2d(x, weight, bias, *geometry)
    for ours, wanted, terms in (
        (convolution(x, weight, bias, geometry), exact, weight[0].numel()),
        (convolution(x, weight, None, geometry), exact - bias.double()[:, None, None], weight[0].numel()),
        (input_gradient(grad, weight, x.shape, geometry), to_x, weight[:, 0].numel()),
        (weight_gradient(grad, x, weight.shape, geometry), to_weight, grad[:, 0].numel()),
    ):
        # Sums of that many products, each of unit size.
        bound = 4 * torch.finfo(dtype).eps * terms**0.5 * wanted.abs().max()
        assert ours.dtype == dtype and (ours.double() - wanted).abs().max() <= bound
    ours = convolution(x, weight, bias, geometry)
    for form in (torch.contiguous_format, torch.channels_last):
        assert ours.is_contiguous(memory_format=form) == stock.is_contiguous(memory_format=form)
    assert input_gradient(grad, weight, x.shape, geometry).shape == x.shape


@pytest.mark.parametrize("weights_last", [False, True], ids=["contiguous weight", "channels_last weight"])
def test_strided_convolutions_go_through_channels_last(weights_last: bool):
    torch.manual_seed(0)
    x, weight = draw(2, 64, 20, 20, dtype=torch.float32), draw(64, 64, 4, 4, dtype=torch.float32, last=weights_last)
    geometry = Geometry((2, 2), (1, 1), (1, 1), 1)
    assert _convolution._channels_last_is_faster(x, weight.shape, geometry)
    stock = torch.nn.functional.conv2d(x, weight, None, *geometry)
    ours = convolution(x, weight, None, geometry)
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)
    assert ours.stride() == stock.stride()
    grad = torch.randn_like(stock)
    (to_x,) = torch.autograd.grad(torch.nn.functional.conv2d(x.requires_grad_(), weight, None, *geometry), x, grad)
    ours = input_gradient(grad, weight, x.shape, geometry)
    torch.testing.assert_close(ours, to_x, rtol=1e-4, atol=1e-4)


def test_derivatives_of_a_critics_convolution():
    torch.manual_seed(0)
    x = torch.randn(2, 128, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(128, 128, 2, 2, dtype=torch.float64, requires_grad=True)

    def few(x: Tensor, weight: Tensor) -> Tensor:
        # A few numbers of the result: a Jacobian of all of them would take minutes.
        return ops.critic_conv2d(x, weight * 0.1, None, 1, 1)[:, ::40, 0, :2]

    direction = torch.randn_like(x), torch.randn_like(weight)

    def along(t: Tensor) -> Tensor:
        return few(x.detach() + t * direction[0], weight.detach() + t * direction[1])

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along, (t,))
    assert torch.autograd.gradgradcheck(along, (t,))


@pytest.mark.parametrize("walk", [((4, 4), (2, 2), (1, 1), (0, 0)), ((3, 3), (2, 2), (1, 1), (1, 1))], ids=str)
def test_transposed_convolution_and_its_gradients_are_torchs(walk):
    kernel, stride, padding, output_padding = walk
    torch.manual_seed(0)
    given = [torch.randn(3, 128, 4, 4), torch.randn(128, 144, *kernel), torch.randn(144)]
    geometry = Geometry(stride, padding, (1, 1), 1)
    assert _convolution.transposed_is_own(given[0], given[1], geometry, output_padding)
    results = []
    for function, cast, options in (
        (conv_transpose2d, torch.Tensor.float, (geometry, output_padding)),
        (torch.nn.functional.conv_transpose2d, torch.Tensor.double, (stride, padding, output_padding)),
    ):
        inputs = [cast(t).requires_grad_() for t in given]
        y = function(*inputs, *options)
        cotangent = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        grads = torch.autograd.grad(y, inputs, cotangent, create_graph=True)
        second = torch.autograd.grad(grads[0].square().sum() + grads[1].square().sum(), inputs[:2])
        results.append([y, *grads, *second])
    for ours, wanted in zip(*results, strict=True):
        assert (ours - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_empty_batches_and_tiny_layers_are_left_to_aten():
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1)
    few = torch.Size((8, 128, 3, 3))
    assert not _convolution._product_is_faster(True, torch.zeros(2, 128, 4, 4), few, geometry)
    many = torch.Size((128, 128, 3, 3))
    assert not _convolution._product_is_faster(True, torch.zeros(0, 128, 4, 4), many, geometry)
    assert not _convolution._product_is_faster(True, torch.zeros(2, 128, 64, 64), many, geometry)
    assert not _convolution._product_is_faster(True, torch.zeros(2, 128, 4, 4).bfloat16(), many, geometry)
    assert not _convolution._product_is_faster(True, torch.zeros(2, 128, 4, 4), many, geometry._replace(groups=2))


def test_on_amd_products_are_for_one_pixel_and_for_weights(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_convolution, "is_amd", lambda: True)
    weight, geometry = torch.Size((128, 128, 4, 4)), Geometry((1, 1), (0, 0), (1, 1), 1)
    assert _convolution._product_is_faster(True, torch.zeros(2, 128, 4, 4), weight, geometry)
    assert not _convolution._product_is_faster(True, torch.zeros(2, 128, 5, 5), weight, geometry)
    assert not _convolution._product_is_faster(False, torch.zeros(2, 128, 2, 2), weight, geometry)
    assert _convolution._product_is_faster(False, torch.zeros(2, 128, 2, 2), weight, geometry, for_weight=True)


def test_the_processor_s_vendor(tmp_path: Path):
    description = tmp_path / "cpuinfo"
    assert _processor._vendor(str(description)) == ""
    description.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\n")
    assert _processor._vendor(str(description)) == "AuthenticAMD"


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_an_activation_behind_a_product_may_work_in_place(last: bool, padding: int):
    """What autograd gets from the product is no view."""
    torch.manual_seed(0)
    x, weight = draw(2, 128, 4, 4, dtype=torch.float32, last=last), draw(128, 128, 3, 3, dtype=torch.float32)
    weight.requires_grad_()
    for convolve, stock in (
        (lambda: ops.critic_conv2d(x, weight, None, 1, padding), torch.nn.functional.conv2d),
        (
            lambda: conv_transpose2d(x, weight, None, Geometry((1, 1), (padding,) * 2, (1, 1), 1), (0, 0)),
            torch.nn.functional.conv_transpose2d,
        ),
    ):
        y = torch.nn.functional.leaky_relu_(convolve(), 0.2)
        expected = torch.nn.functional.leaky_relu(stock(x, weight, None, 1, padding), 0.2)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)
        (found,) = torch.autograd.grad(y.sum(), weight)
        (wanted,) = torch.autograd.grad(expected.sum(), weight)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-2)
