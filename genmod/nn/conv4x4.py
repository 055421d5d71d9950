"""Modules of the `conv4x4` family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genmod import ops
from genmod.nn.geometry import COVERED_4X4, WORDS_4X4, check_geometry


class Conv4x4(nn.Conv2d):
    """A 4x4 convolution with stride 2 and padding 1, which halves an image: `nn.Conv2d`, by
    :func:`genmod.ops.conv4x4`.

    A subclass of `nn.Conv2d` with its arguments, its initialisation and its state_dict. Nothing derived from the weight
    is kept, so it may be changed, replaced, tied, parametrised or loaded at any time.

    Args:
        in_channels, out_channels, bias, device, dtype: as in `nn.Conv2d`.
        kernel_size, stride, padding, dilation, groups, padding_mode: covered are 4, 2, 1, 1, 1 and "zeros", the
            defaults.

    Shape:
        `[N, Cin, H, W]`, of even height and width, to `[N, Cout, H / 2, W / 2]`.

    Raises:
        ValueError: one of the arguments above that is not covered.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 4,
        stride: int | tuple[int, int] = 2,
        padding: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry: dict[str, Any] = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
        rest: dict[str, Any] = {"dilation": dilation, "groups": groups, "padding_mode": padding_mode}
        check_geometry(COVERED_4X4, WORDS_4X4, "for others take nn.Conv2d", **geometry, **rest)
        super().__init__(in_channels, out_channels, 4, 2, 1, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """The image of half the size."""
        return ops.conv4x4(input, self.weight, self.bias)


class ConvTranspose4x4(nn.ConvTranspose2d):
    """A transposed 4x4 convolution with stride 2 and padding 1, which doubles an image: `nn.ConvTranspose2d`, by
    :func:`genmod.ops.conv4x4`.

    A subclass of `nn.ConvTranspose2d` with its arguments, its initialisation and its state_dict.

    Args:
        in_channels, out_channels, bias, device, dtype: as in `nn.ConvTranspose2d`.
        kernel_size, stride, padding, output_padding, groups, dilation, padding_mode: covered are 4, 2, 1, 0, 1, 1 and
            "zeros", the defaults.

    Shape:
        `[N, Cin, H, W]` to `[N, Cout, 2 H, 2 W]`.

    Raises:
        ValueError: one of the arguments above that is not covered.
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
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry: dict[str, Any] = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
        rest: dict[str, Any] = {"dilation": dilation, "groups": groups, "padding_mode": padding_mode}
        others = "for others take nn.ConvTranspose2d"
        check_geometry(COVERED_4X4, WORDS_4X4, others, **geometry, output_padding=output_padding, **rest)
        super().__init__(in_channels, out_channels, 4, 2, 1, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The image of twice the size, which is the one `output_size` that there is."""
        expected = [2 * size for size in input.shape[2:]]
        if output_size is not None and list(output_size)[-2:] != expected:
            raise ValueError(f"output_size: got {list(output_size)}, expected {expected}")
        return ops.conv4x4(input, self.weight, self.bias, transposed=True)
