"""Residual blocks of diffusion models' autoencoders, under the parameter names of diffusers.

A block ends in an addition, and what follows it is nearly always a group norm, which can make that addition while it
reads its input. So beside `forward` each block has `branches`: the summands in place of the sum, and the same taken
from the block before. They are two images, the second of which may be missing, and, on a GPU, the biases of the
convolutions that made them (see `genmod.nn.convolution`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmod import layout, ops
from genmod.nn.attention import attention
from genmod.nn.convolution import without_bias
from genmod.nn.norm_act import GroupNormAct
from genmod.ops._tracing import gradients_are_on
from genmod.ops.norm_act import Activation

Branches = tuple[Tensor, Tensor | None, Tensor | None]


class ResnetBlock(nn.Module):
    """Twice group norm, activation and 3x3 convolution, beside a shortcut (He et al. 2016, as in diffusion models).

    Equal to diffusers' `ResnetBlock2D` without a time embedding, and with its state_dict: `norm1`, `conv1`, `norm2`,
    `conv2` and, where the number of channels changes, the 1x1 `conv_shortcut`. Norm and activation are one pass; the
    division of the sum by 1.0 is not made.

    Args:
        in_channels, out_channels: `out_channels` is `in_channels` by default.
        groups, eps: of the norms. `groups` divides both numbers of channels.
        dropout: probability of a zero in front of the second convolution, in training.
        activation: see :func:`genmod.ops.group_norm_act`.

    Shape:
        `[N, Cin, H, W]` to `[N, Cout, H, W]`, in the memory format of the input.

    Raises:
        ValueError: `groups` that do not divide the channels, an unknown `activation`, or a `dropout` outside [0, 1].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        groups: int = 32,
        eps: float = 1e-6,
        dropout: float = 0.0,
        activation: Activation = "silu",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        check_groups("in_channels", in_channels, groups)
        check_groups("out_channels", out_channels, groups)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm1 = GroupNormAct(groups, in_channels, eps, activation=activation, **options)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, **options)
        self.norm2 = GroupNormAct(groups, out_channels, eps, activation=activation, **options)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, **options)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1, **options) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both branches."""
        return add(*self.branches(x))

    def branches(self, x: Tensor, residual: Tensor | None = None, bias: Tensor | None = None) -> Branches:
        """The summands of the result for the sum of what is given."""
        h, x = normalize(self.norm1, x, residual, bias)
        h, bias = without_bias(self.conv1, h)
        h = self.norm2(h, x_bias=bias)
        h, bias = without_bias(self.conv2, self.dropout(h))
        if self.conv_shortcut is None:
            return h, x, bias
        x, other = without_bias(self.conv_shortcut, x)
        return h, x, other if bias is None else bias if other is None else bias + other


class AttentionBlock(nn.Module):
    """Self-attention over all pixels with one head, behind a group norm and beside a shortcut.

    Equal to diffusers' `Attention` as its autoencoders use it, and with its state_dict: `group_norm`, `to_q`, `to_k`,
    `to_v` and `to_out.0`. Each row of the attention matrix sums to one, so without gradients the projections of values
    and of the result are a single one:

        softmax(q kᵀ / √C) (x Vᵀ + v) Oᵀ + o  =  softmax(q kᵀ / √C) x (O V)ᵀ + (O v + o)

    The product O V is summed in float32 (float64 for float64), and made anew at each call, where there are more pixels
    than channels and it so costs less than it saves. Nothing derived from the weights is kept, so they may be changed,
    replaced, tied or loaded at any time.

    Args:
        channels: C.
        groups, eps: of the norm. `groups` divides C.

    Shape:
        `[N, C, H, W]` to the same, in the memory format of the input.

    Raises:
        ValueError: `groups` that do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        *,
        groups: int = 32,
        eps: float = 1e-6,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_groups("channels", channels, groups)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.group_norm = GroupNormAct(groups, channels, eps, activation="identity", **options)
        self.to_q = nn.Linear(channels, channels, **options)
        self.to_k = nn.Linear(channels, channels, **options)
        self.to_v = nn.Linear(channels, channels, **options)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels, **options)])

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both branches."""
        return add(*self.branches(x))

    def branches(self, x: Tensor, residual: Tensor | None = None, bias: Tensor | None = None) -> Branches:
        """The summands of the result for the sum of what is given."""
        h, x = normalize(self.group_norm, x, residual, bias)
        pixels = h.flatten(2).transpose(1, 2)
        q, k = self.to_q(pixels), self.to_k(pixels)
        if gradients_are_on() or h.shape[0] * h.shape[2] * h.shape[3] <= h.shape[1]:
            h = self.to_out[0](attention(q, k, self.to_v(pixels)))
        else:
            out = self.to_out[0]
            assert isinstance(out, nn.Linear)
            h = attention(q, k, F.linear(pixels, *values_to_result(self.to_v, out)))
        h = h.transpose(1, 2).view_as(x)  # in channels_last
        return h.contiguous(memory_format=layout.memory_format_of(x)), x, None


def values_to_result(value: nn.Linear, out: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of attention's projections of values and of the result in one; see :class:`AttentionBlock`."""
    wide = torch.promote_types(value.weight.dtype, torch.float32)
    with torch.autocast(value.weight.device.type, enabled=False):
        weight = out.weight.to(wide) @ value.weight.to(wide)
        bias = None if out.bias is None else out.bias.to(wide)
        if value.bias is not None:
            through = out.weight.to(wide) @ value.bias.to(wide)
            bias = through if bias is None else bias + through
    return weight.to(value.weight.dtype), None if bias is None else bias.to(value.weight.dtype)


def normalize(
    norm: GroupNormAct, x: Tensor, residual: Tensor | None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Norm and activation of a sum of which all but the first summand may be missing, and the sum."""
    if residual is None and bias is None:
        return norm(x), x
    return norm(x, residual, x_bias=bias, return_sum=True)


def add(x: Tensor, residual: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """The sum of a block's branches."""
    x = x if bias is None else ops.bias_act(x, bias, activation="identity")
    return x if residual is None else x + residual


def check_groups(name: str, channels: int, groups: int) -> None:
    """That a number of channels falls into so many groups."""
    if groups < 1 or channels < 1 or channels % groups:
        raise ValueError(f"groups: got {groups}, expected a divisor of {name}={channels}")
