"""Blocks of decoders and generators, put together from the fused modules."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from genmod.nn.norm_act import BatchNormAct, GroupNormAct
from genmod.nn.upsample_conv import UpsampleConv2d
from genmod.ops._convolution import Geometry
from genmod.ops.norm_act import Activation
from genmod.ops.upsample_conv import conv_transpose2d

Norm = Literal["batch", "group", "none"]


class ConvTransposeBlock(nn.Module):
    """A block of DCGAN's generator: transposed convolution, batch norm and activation, the last two in one pass.

    The functional form is :func:`genmod.ops.conv_transpose2d_norm_act`. Weights start as DCGAN's do: the convolution's
    from N(0, 0.02), the norm's from N(1, 0.02).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias: of the convolution, as in
            `nn.ConvTranspose2d`; the defaults double the image.
        activation, negative_slope: see :func:`genmod.ops.bias_act`.
        eps, momentum: of the norm.

    Shape:
        `[N, Cin, H, W]` to `[N, Cout, 2H, 2W]`. The state_dict's keys are `conv.*` and `norm.*`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 4,
        stride: int | tuple[int, int] = 2,
        padding: int | tuple[int, int] = 1,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = False,
        *,
        activation: Activation = "relu",
        negative_slope: float = 0.2,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = _ConvTranspose2d(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, **options
        )
        self.norm = BatchNormAct(
            out_channels, eps, momentum, activation=activation, negative_slope=negative_slope, **options
        )
        nn.init.normal_(self.conv.weight, 0.0, 0.02)
        nn.init.normal_(self.norm.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """The larger image."""
        return self.norm(self.conv(x))


class UpsampleBlock(nn.Module):
    """Nearest-neighbour upsampling and a 3x3 convolution as one map, then norm and activation in one pass.

    In place of a transposed convolution where that would leave a checkerboard (Odena, Dumoulin and Olah, *Deconvolution
    and checkerboard artifacts*, Distill 2016).

    Args:
        in_channels, out_channels: of the convolution.
        norm: "batch", "group" or "none".
        activation, negative_slope: see :func:`genmod.ops.bias_act`.
        num_groups: of the group norm.
        groups: of the convolution.
        bias: of the convolution; by default there is one unless batch norm follows, which would take it away again.

    Shape:
        `[N, Cin, H, W]` to `[N, Cout, 2H, 2W]`. The state_dict's keys are `conv.*` and `norm.*`.

    Raises:
        ValueError: an unknown `norm` or `activation`, or `out_channels` that `num_groups` does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: Norm = "batch",
        activation: Activation = "relu",
        negative_slope: float = 0.2,
        num_groups: int = 32,
        groups: int = 1,
        bias: bool | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if norm not in ("batch", "group", "none"):
            raise ValueError(f"norm: got {norm!r}, expected 'batch', 'group' or 'none'")
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        rest: dict[str, Any] = {"activation": activation, "negative_slope": negative_slope}
        bias = norm != "batch" if bias is None else bias
        self.conv = UpsampleConv2d(
            in_channels, out_channels, groups=groups, bias=bias, **(rest if norm == "none" else {}), **options
        )
        self.norm: nn.Module = nn.Identity()
        if norm == "batch":
            self.norm = BatchNormAct(out_channels, **rest, **options)
        elif norm == "group":
            self.norm = GroupNormAct(num_groups, out_channels, **rest, **options)

    def forward(self, x: Tensor) -> Tensor:
        """The larger image."""
        return self.norm(self.conv(x))


class _ConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d`, with its results, arguments and state_dict."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        product = transposed_product(self, input) if output_size is None else None
        return super().forward(input, output_size) if product is None else product


def transposed_product(conv: nn.ConvTranspose2d, input: Tensor) -> Tensor | None:
    """What `conv` makes of an image of few pixels, by matrix product; None where oneDNN's convolution is faster.

    Of a single pixel, as in DCGAN's first block, the product is ten times as fast.
    """
    if conv.dilation != (1, 1) or conv.padding_mode != "zeros" or torch.is_autocast_enabled(input.device.type):
        return None
    if input.shape[2:] != (1, 1) or (conv.padding, conv.output_padding, conv.groups) != ((0, 0), (0, 0), 1):
        padding: Any = conv.padding  # never a word, in a transposed convolution
        more: Any = conv.output_padding
        geometry = Geometry(conv.stride, padding, conv.dilation, conv.groups)
        return conv_transpose2d(input, conv.weight, conv.bias, geometry, more)
    pixels, weight = input.flatten(1), conv.weight
    # The image is in the memory format of the weight, as it is after a convolution.
    if weight.is_contiguous():
        y = (pixels @ weight.flatten(1)).unflatten(1, weight.shape[1:])
    else:
        weight = weight.permute(0, 2, 3, 1)
        y = (pixels @ weight.flatten(1)).unflatten(1, weight.shape[1:]).permute(0, 3, 1, 2)
    return y if conv.bias is None else y + conv.bias[:, None, None]
