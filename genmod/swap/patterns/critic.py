"""Layers of critics, whose second derivatives cost nothing in vain. They pay under gradient penalties only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from genmod.swap.classes import class_of
from genmod.swap.pattern import ModulePattern

#: Modules that return a tensor of their own, which an in-place activation may overwrite unseen.
_FRESH = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm)


def _why_not(module: nn.Module, before: Sequence[nn.Module | None]) -> str:
    if not getattr(module, "inplace", False):
        return ""
    unseen = all(previous is not None and class_of(previous) in _FRESH for previous in before)
    return "" if before and unseen else "it works in place on a tensor that others may read"


def _layer(name: str, original: str, mixin: str, became: str) -> ModulePattern:
    return ModulePattern(
        name=name,
        original=f"torch.nn.modules.{original}",
        mixin=f"genmod.swap.critic:{mixin}",
        became=became,
        exactness="bit-equal",
        bound="none in values; second derivatives reassociated",
        modes="training",
        allow="critic",
        why_not=_why_not,
    )


MODULES = (
    _layer("critic_conv2d", "conv:Conv2d", "Conv2d", "double backward by native kernels"),
    _layer("critic_leaky_relu", "activation:LeakyReLU", "LeakyReLU", "second derivative None instead of zeros"),
    _layer("critic_relu", "activation:ReLU", "ReLU", "second derivative None instead of zeros"),
)
