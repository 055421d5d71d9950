"""Convolutions with a 4x4 kernel, stride 2 and padding 1, and their transposes, on CPUs."""

from __future__ import annotations

import torch
from torch import nn

from genmod.nn.convolution import is_4x4
from genmod.ops._convolution_tiles import may_pay
from genmod.swap.pattern import ModulePattern


def _looks_for(module: nn.Module) -> bool:
    """On a GPU it is cuDNN's all the same, and with few channels on both sides PyTorch's own."""
    if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) or not is_4x4(module):
        return False
    on_cpu = module.weight.device.type == "cpu" and module.weight.dtype == torch.float32
    return on_cpu and may_pay(module.weight.shape)


def _convolution(name: str, original: str) -> ModulePattern:
    return ModulePattern(
        name=name,
        original=f"torch.nn.modules.conv:{original}",
        mixin=f"genmod.swap.conv4x4:{original}",
        became="minimal filtering: 9 multiplications for 16",
        exactness="reassociated",
        bound="error at most twice stock's own",
        looks_for=_looks_for,
    )


MODULES = (_convolution("conv4x4", "Conv2d"), _convolution("conv_transpose4x4", "ConvTranspose2d"))
