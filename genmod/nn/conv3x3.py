"""Modules of the `conv3x3` family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genmod import ops
from genmod.nn.geometry import COVERED_3X3, WORDS_3X3, check_geometry


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with stride and padding 1: `nn.Conv2d`, by :func:`genmod.ops.conv3x3`.

    A subclass of `nn.Conv2d` with its arguments, its initialisation and its state_dict. Nothing derived from the weight
    is kept, so it may be changed, replaced, tied, parametrised or loaded at any time.

    Args:
        in_channels, out_channels, bias, device, dtype: as in `nn.Conv2d`.
        kernel_size, stride, padding, dilation, groups, padding_mode: covered are 3, 1, 1 (or "same"), 1, 1 and "zeros",
            the defaults.

    Shape:
        `[N, Cin, H, W]` to `[N, Cout, H, W]`.

    Raises:
        ValueError: one of the arguments above that is not covered.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry: dict[str, Any] = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
        rest: dict[str, Any] = {"dilation": dilation, "groups": groups, "padding_mode": padding_mode}
        check_geometry(COVERED_3X3, WORDS_3X3, "for others take nn.Conv2d", **geometry, **rest)
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """The convolved image."""
        return ops.conv3x3(input, self.weight, self.bias)
