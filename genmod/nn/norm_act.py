"""Modules of the `norm_act` family. They subclass torch's, so that arguments, defaults and checkpoints are the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genmod import ops
from genmod.ops.norm_act import ACTIVATIONS, Activation


def _check_activation(activation: Any) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}, expected one of {ACTIVATIONS}")


class GroupNormAct(nn.GroupNorm):
    """`nn.GroupNorm` and an activation in one pass; see :func:`genmod.ops.group_norm_act`.

    Args:
        args, kwargs: those of `nn.GroupNorm`.
        activation: by default "silu", the one that diffusion models use.
        negative_slope: of "leaky_relu".

    Shape:
        `forward(x)` to `y`; `forward(x, residual)` to `(y, x + residual)`; `scale` and `shift` `[N, C]` per sample;
        `x_bias` `[C]` is added to `x` first, and `return_sum` asks for what is normalised without a residual too.
    """

    def __init__(
        self, *args: Any, activation: Activation = "silu", negative_slope: float = 0.01, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        _check_activation(activation)
        self.activation, self.negative_slope = activation, negative_slope

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        residual: Tensor | None = None,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        x_bias: Tensor | None = None,
        return_sum: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See the class."""
        return ops.group_norm_act(
            x,
            self.num_groups,
            self.weight,
            self.bias,
            self.eps,
            activation=self.activation,
            negative_slope=self.negative_slope,
            residual=residual,
            scale=scale,
            shift=shift,
            x_bias=x_bias,
            return_sum=return_sum,
        )

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"{super().extra_repr()}, activation={self.activation!r}"


def batch_norm_act(
    norm: nn.modules.batchnorm._BatchNorm,
    x: Tensor,
    activation: Activation,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """What the batch norm `norm` and an activation behind it make of `x`, in one pass; see the op.

    Buffers are used and updated as the module's own `forward` does.
    """
    norm._check_input_dim(x)
    track = norm.training and norm.track_running_stats
    momentum = norm.momentum
    if track and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:  # cumulative average
            momentum = 1.0 / float(norm.num_batches_tracked)
    use_buffers = track or not norm.training
    return ops.batch_norm_act(
        x,
        norm.running_mean if use_buffers else None,
        norm.running_var if use_buffers else None,
        norm.weight,
        norm.bias,
        norm.training or norm.running_mean is None,
        0.0 if momentum is None else momentum,
        norm.eps,
        activation=activation,
        negative_slope=negative_slope,
        residual=residual,
    )


class BatchNormAct(nn.BatchNorm2d):
    """`nn.BatchNorm2d` and an activation in one pass; see :func:`genmod.ops.batch_norm_act`.

    Args:
        args, kwargs: those of `nn.BatchNorm2d`.
        activation: by default "relu".
        negative_slope: of "leaky_relu".

    Shape:
        `forward(x)` with `[N, C, H, W]` to `y`; `forward(x, residual)` to `(y, x + residual)`.
    """

    def __init__(
        self, *args: Any, activation: Activation = "relu", negative_slope: float = 0.01, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        _check_activation(activation)
        self.activation, self.negative_slope = activation, negative_slope

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """See the class. Buffers are used and updated as `nn.BatchNorm2d` does."""
        return batch_norm_act(self, x, self.activation, self.negative_slope, residual)

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"{super().extra_repr()}, activation={self.activation!r}"


class BiasAct(nn.Module):
    """A bias per channel, an activation, a gain and a clamp; see :func:`genmod.ops.bias_act`.

    Args:
        num_channels: C.
        activation, negative_slope, gain, clamp: the op's options.
        bias: whether there is one; it starts at zero.

    Shape:
        `[N, C, ...]` to the same.
    """

    def __init__(
        self,
        num_channels: int,
        activation: Activation,
        *,
        negative_slope: float = 0.01,
        gain: float = 1.0,
        clamp: float | None = None,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        _check_activation(activation)
        self.num_channels, self.activation, self.negative_slope = num_channels, activation, negative_slope
        self.gain, self.clamp = gain, clamp
        self.bias: nn.Parameter | None
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(num_channels, device=device, dtype=dtype)) if bias else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return ops.bias_act(
            x,
            self.bias,
            activation=self.activation,
            negative_slope=self.negative_slope,
            gain=self.gain,
            clamp=self.clamp,
        )

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"{self.num_channels}, {self.activation!r}, gain={self.gain}, clamp={self.clamp}"
