"""Modules of the `upsample_conv` family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genmod import ops
from genmod.nn.geometry import COVERED_3X3, WORDS_3X3, check_geometry
from genmod.ops.norm_act import ACTIVATIONS, Activation


class UpsampleConv2d(nn.Conv2d):
    """Doubles an image by nearest neighbour, then convolves it: `nn.Upsample(scale_factor=2)` and `nn.Conv2d` in one.

    A subclass of `nn.Conv2d` with its arguments, its initialisation and its state_dict, so the checkpoint of a
    convolution that stood behind an upsampling loads unchanged. See :func:`genmod.ops.upsample_conv2d`. Nothing derived
    from the weight is kept, so it may be changed, replaced, tied, parametrised or loaded at any time.

    Args:
        in_channels, out_channels, groups, bias, device, dtype: as in `nn.Conv2d`.
        kernel_size, stride, padding, dilation, padding_mode: covered are 3, 1, 1 (or "same"), 1 and "zeros", the
            defaults.
        activation, negative_slope: of the result, as in :func:`genmod.ops.bias_act`; none by default.

    Shape:
        `[N, Cin, H, W]` to `[N, Cout, 2H, 2W]`.

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
        *,
        activation: Activation = "identity",
        negative_slope: float = 0.01,
    ) -> None:
        others = "for others put nn.Upsample before an nn.Conv2d"
        geometry: dict[str, Any] = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
        rest: dict[str, Any] = {"dilation": dilation, "padding_mode": padding_mode}
        check_geometry(COVERED_3X3, WORDS_3X3, others, **geometry, **rest)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: got {activation!r}, expected one of {ACTIVATIONS}")
        super().__init__(in_channels, out_channels, 3, 1, 1, 1, groups, bias, device=device, dtype=dtype)
        self.activation, self.negative_slope = activation, negative_slope

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of the upsampled image."""
        return ops.upsample_conv2d(
            input,
            self.weight,
            self.bias,
            groups=self.groups,
            activation=self.activation,
            negative_slope=self.negative_slope,
        )

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"{super().extra_repr()}, activation={self.activation!r}"
