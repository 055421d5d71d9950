"""Modules of the `upsample_conv` family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genmod import ops
from genmod.ops.norm_act import ACTIVATIONS, Activation

#: What may be given for each argument of a convolution's geometry, in every way of writing it.
_COVERED: dict[str, tuple[Any, ...]] = {
    "kernel_size": (3, (3, 3), [3, 3]),
    "stride": (1, (1, 1), [1, 1]),
    "padding": (1, (1, 1), [1, 1], "same"),
    "dilation": (1, (1, 1), [1, 1]),
    "padding_mode": ("zeros",),
}


def check_geometry(kernel_size: Any, stride: Any, padding: Any, dilation: Any, padding_mode: Any, others: str) -> None:
    """That a convolution is the one which is covered; `others` says what to take otherwise."""
    given = (kernel_size, stride, padding, dilation, padding_mode)
    for (name, covered), got in zip(_COVERED.items(), given, strict=True):
        if got not in covered:
            raise ValueError(
                f"{name}: got {got!r}, expected {covered[0]!r}: covered is a 3x3 kernel with stride 1, padding 1, "
                f"dilation 1 and zeros around; {others}"
            )


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
        check_geometry(kernel_size, stride, padding, dilation, padding_mode, others)
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
