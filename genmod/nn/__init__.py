"""Thin modules over `genmod.ops`."""

from genmod.nn.adversarial import CriticLoss, GeneratorLoss, LeCam
from genmod.nn.gaussian import DiagonalGaussian, GaussianSampler

__all__ = ["CriticLoss", "DiagonalGaussian", "GaussianSampler", "GeneratorLoss", "LeCam"]
