"""Layers for critics: torch's own, with second derivatives in which nothing is computed in vain."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmod.ops.critic import critic_leaky_relu
from genmod.ops.critic_conv import critic_conv2d


class CriticConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` for critics under a gradient penalty: same arguments, results and state_dict.

    Its input gradient does not compute the weight gradient beside it, and its double backward uses the backend's native
    kernels: see `genmod.ops.critic_conv2d`.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: str | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        return critic_conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class CriticLinear(nn.Linear):
    """`torch.nn.Linear`, by another name: all derivatives of a matrix product are matrix products, and torch computes
    none of them in vain. It completes the set, so that a critic can be written in one vocabulary."""


class CriticLeakyReLU(nn.LeakyReLU):
    """`torch.nn.LeakyReLU` whose second derivative is None instead of zeros: see `genmod.ops.critic_leaky_relu`.

    Args are torch's. `inplace` is accepted and changes nothing: backward keeps a byte per element, not the input.
    """

    def forward(self, input: Tensor) -> Tensor:
        return critic_leaky_relu(input, self.negative_slope)


class CriticReLU(nn.ReLU):
    """`torch.nn.ReLU` whose second derivative is None instead of zeros."""

    def forward(self, input: Tensor) -> Tensor:
        return critic_leaky_relu(input, 0.0)


class BlurDownsample(nn.Module):
    r"""Low-pass filter and take every other pixel, `[N, C, H, W]` to `[N, C, ceil(H / 2), ceil(W / 2)]`.

    The filter is the outer product of a binomial one with itself, normalised to sum 1, one channel at a time, with
    zeros beyond the edge. Linear; differentiable to any order. Source: Zhang, *Making convolutional networks
    shift-invariant again*, ICML 2019; in critics, Karras et al., CVPR 2020.

    Args:
        taps: the filter in one dimension, `(1, 3, 3, 1)` or, of odd length, `(1, 2, 1)` and the like.
        stride: 2; 1 blurs only.
    """

    kernel: Tensor

    def __init__(self, taps: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0), stride: int = 2) -> None:
        super().__init__()
        if len(taps) == 0 or abs(sum(taps)) < 1e-12:
            raise ValueError(f"taps: got {taps}, expected numbers with a sum that is not zero")
        line = torch.tensor(taps, dtype=torch.float32)
        kernel = torch.outer(line, line)
        self.stride = stride
        self.register_buffer("kernel", (kernel / kernel.sum())[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels, taps = x.shape[1], self.kernel.shape[-1]
        before, after = (taps - 1) // 2, taps // 2
        weight = self.kernel.to(x.dtype).expand(channels, 1, taps, taps)
        x = F.pad(x, (before, after, before, after)) if before != after else x
        return critic_conv2d(x, weight, None, self.stride, before if before == after else 0, 1, channels)

    def extra_repr(self) -> str:
        return f"taps={self.kernel.shape[-1]}, stride={self.stride}"


class MinibatchStdDev(nn.Module):
    r"""Appends, as channels, how much the samples of a group differ: a critic's view of variety.

    The batch is split into groups of `group_size` (the largest divisor of the batch that is not greater). For each
    group and each of `channels` parts of the features, the standard deviation :math:`\sqrt{\mathrm{var} + \epsilon}`
    over the group, averaged over features and pixels, becomes a constant channel of every sample in the group. It mixes
    samples, so penalties on such a critic take the autograd path. Differentiable to any order.

    Args:
        group_size: at most so many samples to a group.
        channels: parts, and channels appended; must divide the number of features.
        eps: inside the root, where its derivative would be infinite without.

    Source: Karras et al., *Progressive growing of GANs*, ICLR 2018.
    """

    def __init__(self, group_size: int = 4, channels: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        if group_size < 1 or channels < 1:
            raise ValueError(f"group_size, channels: got {group_size} and {channels}, expected both to be at least 1")
        self.group_size, self.channels, self.eps = group_size, channels, eps

    def forward(self, x: Tensor) -> Tensor:
        batch, features, height, width = x.shape
        if features % self.channels:
            raise ValueError(f"x: got {features} features, expected a multiple of channels, {self.channels}")
        group = next((g for g in range(min(self.group_size, batch), 0, -1) if batch % g == 0), 1)
        y = x.float().reshape(group, -1, self.channels, features // self.channels, height, width)
        deviation = (y.var(0, correction=0) + self.eps).sqrt().mean((2, 3, 4))
        constant = deviation.to(x.dtype).repeat(group, 1)[:, :, None, None].expand(-1, -1, height, width)
        return torch.cat((x, constant), 1)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, channels={self.channels}"
