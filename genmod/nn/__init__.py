"""Thin modules over `genmod.ops`."""

from genmod.nn.aggregate import DIP, MMD, BetaTCVAELoss, TotalCorrelation
from genmod.nn.gaussian import DiagonalGaussian, GaussianSampler

__all__ = ["DIP", "MMD", "BetaTCVAELoss", "DiagonalGaussian", "GaussianSampler", "TotalCorrelation"]
