"""Thin modules over `genmod.ops`."""

from genmod.nn.elbo import ELBO, ELBOTerms, ImportanceWeightedELBO, ImportanceWeightedTerms
from genmod.nn.gaussian import DiagonalGaussian, GaussianSampler
from genmod.nn.logistic_mixture import LogisticMixture
from genmod.nn.schedules import CosineSchedule, CyclicalSchedule, LinearSchedule

__all__ = [
    "ELBO",
    "CosineSchedule",
    "CyclicalSchedule",
    "DiagonalGaussian",
    "ELBOTerms",
    "GaussianSampler",
    "ImportanceWeightedELBO",
    "ImportanceWeightedTerms",
    "LinearSchedule",
    "LogisticMixture",
]
