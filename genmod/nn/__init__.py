"""Thin modules over `genmod.ops`."""

from genmod.nn.gaussian import DiagonalGaussian, GaussianSampler

__all__ = ["DiagonalGaussian", "GaussianSampler"]
