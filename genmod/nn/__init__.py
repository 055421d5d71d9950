"""Thin modules over `genmod.ops`."""

from genmod.nn.adversarial import CriticLoss, GeneratorLoss, LeCam
from genmod.nn.critic import BlurDownsample, CriticConv2d, CriticLeakyReLU, CriticLinear, CriticReLU, MinibatchStdDev
from genmod.nn.gaussian import DiagonalGaussian, GaussianSampler
from genmod.nn.reconstruction import ReconstructionLoss

__all__ = [
    "BlurDownsample",
    "CriticConv2d",
    "CriticLeakyReLU",
    "CriticLinear",
    "CriticLoss",
    "CriticReLU",
    "DiagonalGaussian",
    "GaussianSampler",
    "GeneratorLoss",
    "LeCam",
    "MinibatchStdDev",
    "ReconstructionLoss",
]
