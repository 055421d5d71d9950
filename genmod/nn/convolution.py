"""Convolutions whose bias is left to what follows them, where that costs less."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genmod import ops
from genmod.nn.upsample_conv import UpsampleConv2d


def without_bias(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """`conv(x)`, or on a GPU the same without the bias, and the bias.

    PyTorch adds the bias of a cuDNN convolution in a pass of its own: on an H200, 3x3, 128 channels, 1024 x 1024 pixels
    in bfloat16, 0.83 ms with it and 0.45 ms without. A norm that reads the image anyhow adds it on the way. oneDNN adds
    it inside. A module that is more than its class, by hooks or a forward of its own, is called as it is.
    """
    if not _bias_is_a_pass(x) or _is_more_than_its_class(conv) or conv.bias is None:
        return conv(x), None
    if type(conv) is UpsampleConv2d:
        if conv.activation != "identity":
            return conv(x), None
        return ops.upsample_conv2d(x, conv.weight, None, groups=conv.groups), conv.bias
    if type(conv) is nn.Conv2d:
        return conv._conv_forward(x, conv.weight, None), conv.bias
    return conv(x), None


def _bias_is_a_pass(x: Tensor) -> bool:
    return x.is_cuda


def _is_more_than_its_class(conv: nn.Module) -> bool:
    everywhere = torch.nn.modules.module
    hooks = (
        conv._forward_hooks, conv._forward_pre_hooks, conv._backward_hooks, conv._backward_pre_hooks,
        everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks,
        everywhere._global_backward_hooks, everywhere._global_backward_pre_hooks,
    )  # fmt: skip
    return any(hooks) or "forward" in vars(conv)
