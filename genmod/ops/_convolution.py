r"""The three maps that a convolution is made of, each by the CPU's fastest way: oneDNN's kernels, minimal filtering, or
one matrix product.

A kernel of 4x4 with stride 2, as in DCGAN, is the op `conv4x4`'s, where that was measured to be faster. Else, with few
pixels and many channels, as in the deep half of a critic or the first half of a generator, oneDNN reaches a fraction of
what a matrix product does. There the patches under the kernel are written out (a few images at a time, so that they
stay in the cache) and multiplied: forward :math:`y = P(x) W`, the input's gradient :math:`P^\top(g W^\top)`, the
weight's :math:`P(x)^\top g`, where P takes an image to its patches. Elsewhere, and on other devices, these are ATen's
convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import layout
from genmod.ops._convolution_tiles import FORWARD, TRANSPOSED, WEIGHT, by_tiles
from genmod.ops._processor import is_amd


class Geometry(NamedTuple):
    """How a convolution walks over its input, a number per spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """`x` convolved with `weight`."""
    if _is_halving(weight.shape, geometry, x) and by_tiles(FORWARD, x, _halved(x.shape), weight.shape):
        return torch.ops.genmod.conv4x4.default(x, weight, bias, False)
    if not _product_is_faster(True, x, weight.shape, geometry):
        if _channels_last_is_faster(x, weight.shape, geometry):
            y = F.conv2d(_in_channels_last(x), _in_channels_last(weight), bias, *geometry)
            return _in_format_of(y, x, weight)
        convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.dim()]
        return convolve(x, weight, bias, *geometry)
    images, pixels = x.permute(0, 2, 3, 1), _pixels(x.shape, weight.shape, geometry)
    matrix = weight.permute(0, 2, 3, 1).flatten(1).t()  # a view, if the weight is in channels_last
    # In autograd's eyes a tensor of its own, not a view, so that an activation behind it may work in place.
    shape = (x.shape[0], weight.shape[0], *pixels)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    results = y.permute(0, 2, 3, 1)
    for part in _parts(x.shape[0], pixels, matrix.shape[0]):
        patches, rows = _patches(images[part], weight.shape, geometry, pixels), results[part].flatten(0, 2)
        if bias is None:
            torch.mm(patches, matrix, out=rows)
        else:
            torch.addmm(bias, patches, matrix, out=rows)
    return _in_format_of(y, x, weight)


def input_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """The gradient of a convolution's input, of which only the shape enters: also a transposed convolution."""
    if _is_doubling(grad.shape, weight.shape, shape, geometry) and by_tiles(TRANSPOSED, grad, grad.shape, weight.shape):
        return torch.ops.genmod.conv4x4.default(grad, weight, None, True)
    if not _product_is_faster(False, grad, weight.shape, geometry):
        if _channels_last_is_faster(grad, weight.shape, geometry):
            image = grad.new_empty(1).expand(shape)
            found = _backward(_in_channels_last(grad), image, _in_channels_last(weight), geometry, 0)
            return _in_format_of(found, grad, weight)
        return _backward(grad, grad.new_empty(1).expand(shape), weight, geometry, 0)
    (height, width), (top, left), (down, right) = shape[2:], geometry.padding, geometry.stride
    pixels, kernel = grad.shape[2:], weight.shape[2:]
    matrix = weight.permute(0, 2, 3, 1).flatten(1)
    extended = torch.empty(
        (shape[0], shape[1], height + 2 * top, width + 2 * left),
        dtype=grad.dtype,
        device=grad.device,
        memory_format=torch.channels_last,
    ).zero_()
    padded = extended.permute(0, 2, 3, 1)
    for part in _parts(shape[0], pixels, matrix.shape[1]):
        rows = grad[part].permute(0, 2, 3, 1).flatten(0, 2)
        patches = (rows @ matrix).view(-1, *pixels, *kernel, shape[1])
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                seen = padded[part, i : i + down * pixels[0] : down, j : j + right * pixels[1] : right]
                seen[:, : pixels[0], : pixels[1]].add_(patches[:, :, :, i, j])
    inside = extended[:, :, top : top + height, left : left + width] if top or left else extended
    return _in_format_of(inside, grad, weight)


def weight_gradient(grad: Tensor, x: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """The gradient of a convolution's weight, of which only the shape enters."""
    if _is_doubling(grad.shape, shape, x.shape, geometry) and by_tiles(WEIGHT, grad, grad.shape, shape):
        return torch.ops.genmod.conv4x4_weight_gradient.default(grad, x)
    if not _product_is_faster(False, grad, shape, geometry, for_weight=True):
        return _backward(grad, x, grad.new_empty(1).expand(shape), geometry, 1)
    images, gradients, pixels = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1), grad.shape[2:]
    total = grad.new_zeros(shape[0], shape[1:].numel())
    for part in _parts(x.shape[0], pixels, total.shape[1]):
        patches = _patches(images[part], shape, geometry, pixels)
        total.addmm_(gradients[part].flatten(0, 2).t(), patches)
    return total.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)


def gradients(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Both of them. Where both are ATen's they are asked for together: what it converts, it converts once."""
    shape = weight.shape
    apart = _is_doubling(grad.shape, shape, x.shape, geometry) and by_tiles(TRANSPOSED, grad, grad.shape, shape)
    apart = apart or _product_is_faster(False, grad, shape, geometry, for_weight=True)
    if apart or _channels_last_is_faster(grad, shape, geometry):
        return input_gradient(grad, weight, x.shape, geometry), weight_gradient(grad, x, shape, geometry)
    to_x, to_weight, _ = _both(grad, x, weight, geometry, [True, True, False])
    return to_x, to_weight


def forward_is_own(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether a convolution of `x` is not ATen's."""
    halves = _is_halving(weight.shape, geometry, x) and by_tiles(FORWARD, x, _halved(x.shape), weight.shape)
    return halves or _product_is_faster(True, x, weight.shape, geometry)


def _backward(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, which: int) -> Tensor:
    return _both(grad, x, weight, geometry, [which == 0, which == 1, False])[which]


def _both(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding, dilation, groups = geometry
    if weight.shape[0] == 1 and weight.stride(0) != weight.numel():
        # ATen gives the weight's gradient the strides of the weight, and then cannot write to it if this one is odd.
        weight = weight.clone(memory_format=torch.contiguous_format)
    no_output_padding = [0] * len(stride)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, no_output_padding, groups, mask
    )
    return found


# The matrix product's side.

# Measured on two threads with AVX-512, 256 to 512 channels, 4x4 kernels with stride 2, 8x8 to 4x4 pixels, batch 32, in
# ms: forward 11.5 where oneDNN takes 15.2 (channels_last 20.9), the input's gradient 14.5 (25.2, 22.6), the weight's
# 10.5 (26.0, 26.0). With 128 to 256 channels and four times the pixels they are about equal. On an AMD processor
# with AVX-512, whose products are those of MKL too, forward 10.9 (6.9, 4.9), the input's gradient 11.7 (6.5, 6.1), the
# weight's 10.7 (16, 20): there products are for one pixel, where nothing else is left of a convolution, and for
# weights.
_FEW_PIXELS = 16
_MANY_CHANNELS = 128
#: Elements of a part's patches: 8 MB in float32, which the outer caches hold.
_PART = 1 << 21


def transposed_is_own(x: Tensor, weight: Tensor, geometry: Geometry, output_padding: tuple[int, int]) -> bool:
    """Whether a transposed convolution of `x`, or its backward pass, is not ATen's."""
    doubles = not any(output_padding) and _has_four_taps(weight.shape, geometry) and x.dim() == 4
    if doubles and any(by_tiles(which, x, x.shape, weight.shape) for which in (FORWARD, TRANSPOSED, WEIGHT)):
        return True
    return _product_is_faster(False, x, weight.shape, geometry)


# Minimal filtering's side: images of which one is twice as high and wide as the other.


def _has_four_taps(weight: torch.Size, geometry: Geometry) -> bool:
    return tuple(weight[2:]) == (4, 4) and geometry == ((2, 2), (1, 1), (1, 1), 1)


def _halved(image: torch.Size) -> tuple[int, ...]:
    return (*image[:2], image[2] // 2, image[3] // 2)


def _is_halving(weight: torch.Size, geometry: Geometry, x: Tensor) -> bool:
    return _has_four_taps(weight, geometry) and x.dim() == 4 and _even(x.shape)


def _is_doubling(small: torch.Size, weight: torch.Size, large: torch.Size, geometry: Geometry) -> bool:
    """Not of an odd size, which halved and doubled is another."""
    return _has_four_taps(weight, geometry) and len(large) == 4 and small[2:] == _halved(large)[2:] and _even(large)


def _even(image: torch.Size) -> bool:
    return image[2] % 2 == image[3] % 2 == 0


def _product_is_faster(
    forward: bool, image: Tensor, weight: torch.Size, geometry: Geometry, for_weight: bool = False
) -> bool:
    """Whether to take the matrix product. `image` is the input if `forward`, else the output's gradient."""
    if weight[0] < _MANY_CHANNELS or weight[1] < _MANY_CHANNELS or geometry.groups != 1:
        return False
    wide = image.dtype in (torch.float32, torch.float64)
    if not image.is_cpu or not wide or image.dim() != 4 or tuple(geometry.dilation) != (1, 1) or not image.numel():
        return False
    pixels = _pixels(image.shape, weight, geometry) if forward else image.shape[2:]
    return 0 < pixels[0] * pixels[1] <= (_FEW_PIXELS if for_weight or not is_amd() else 1)


def _channels_last_is_faster(image: Tensor, weight: torch.Size, geometry: Geometry) -> bool:
    """Whether oneDNN's kernels for channels_last earn the copies there and back; measured for strided convolutions:
    0.5 to 0.7 of the time, forward and for the input's gradient. The weight's gradient gains nothing."""
    strided = image.dim() == 4 and min(geometry.stride) > 1 and geometry.groups == 1
    if not strided or image.device.type != "cpu" or image.dtype != torch.float32 or min(weight[:2]) < 64:
        return False
    return layout.memory_format_of(image) is torch.contiguous_format


def _in_channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def _pixels(image: torch.Size, weight: torch.Size, geometry: Geometry) -> tuple[int, int]:
    """Height and width of the output."""
    sizes = zip(image[2:], weight[2:], geometry.stride, geometry.padding)
    height, width = ((size + 2 * padding - kernel) // stride + 1 for size, kernel, stride, padding in sizes)
    return height, width


def _parts(images: int, pixels: tuple[int, ...], columns: int) -> Iterator[slice]:
    """Slices of the batch whose patches have about _PART elements."""
    step = max(1, _PART // (pixels[0] * pixels[1] * columns))
    for first in range(0, images, step):
        yield slice(first, first + step)


def _patches(images: Tensor, weight: torch.Size, geometry: Geometry, pixels: tuple[int, ...]) -> Tensor:
    """What the kernel sees at each pixel of the output: `[N, H, W, C]` to `[N * pixels, kernel * C]`."""
    (top, left), (down, right) = geometry.padding, geometry.stride
    padded = F.pad(images, (0, 0, left, left, top, top)).contiguous()
    batch, row, column, _ = padded.stride()
    # A row of the kernel covers neighbours in memory.
    shape = (images.shape[0], *pixels, weight[2], weight[3] * weight[1])
    return padded.as_strided(shape, (batch, down * row, right * column, row, 1)).reshape(-1, shape[3] * shape[4])


def _in_format_of(image: Tensor, *others: Tensor) -> Tensor:
    """`image`, which is in channels_last, in the memory format that ATen's convolution of `others` has."""
    last = any(layout.memory_format_of(t) is torch.channels_last for t in others)
    return image.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
