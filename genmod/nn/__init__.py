"""Thin modules over `genmod.ops`."""

from genmod.nn.critic import (
    BlurDownsample,
    CriticConv2d,
    CriticLeakyReLU,
    CriticLinear,
    CriticReLU,
    MinibatchStdDev,
)
from genmod.nn.gaussian import DiagonalGaussian, GaussianSampler

__all__ = [
    "BlurDownsample",
    "CriticConv2d",
    "CriticLeakyReLU",
    "CriticLinear",
    "CriticReLU",
    "DiagonalGaussian",
    "GaussianSampler",
    "MinibatchStdDev",
]
