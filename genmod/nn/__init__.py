"""Thin modules over `genmod.ops`."""

from genmod.nn.gaussian import DiagonalGaussian, GaussianSampler
from genmod.nn.logistic_mixture import LogisticMixture

__all__ = ["DiagonalGaussian", "GaussianSampler", "LogisticMixture"]
