"""Convolutions with a 3x3 kernel, stride 1 and padding 1, on CPUs."""

from __future__ import annotations

import torch
from torch import nn

from genmod.nn.convolution import is_3x3
from genmod.ops.conv3x3 import FEWEST_CHANNELS
from genmod.swap.pattern import ModulePattern


def _looks_for(module: nn.Module) -> bool:
    """On a GPU it is cuDNN's all the same, and with few channels PyTorch's own."""
    if not isinstance(module, nn.Conv2d) or not is_3x3(module):
        return False
    on_cpu = module.weight.device.type == "cpu" and module.weight.dtype == torch.float32
    return on_cpu and min(module.in_channels, module.out_channels) >= FEWEST_CHANNELS


MODULES = (
    ModulePattern(
        name="conv3x3",
        original="torch.nn.modules.conv:Conv2d",
        mixin="genmod.swap.conv3x3:Conv2d",
        became="minimal filtering: 16 multiplications for 36",
        exactness="reassociated",
        bound="error at most twice stock's own",
        looks_for=_looks_for,
    ),
)
