"""Thin modules over `genmod.ops`."""

from genmod.nn.gaussian import DiagonalGaussian, GaussianSampler
from genmod.nn.norm_act import BatchNormAct, BiasAct, GroupNormAct

__all__ = ["DiagonalGaussian", "GaussianSampler"]
__all__ += ["BatchNormAct", "BiasAct", "GroupNormAct"]
