"""Thin modules over `genmod.ops`."""

from genmod.nn.gaussian import DiagonalGaussian, GaussianSampler
from genmod.nn.reconstruction import ReconstructionLoss

__all__ = ["DiagonalGaussian", "GaussianSampler", "ReconstructionLoss"]
