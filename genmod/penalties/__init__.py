"""Gradient penalties for critics: exact, and cheaper than a backward of a backward."""

from genmod.penalties.approximate import approximate_r1, approximate_r2
from genmod.penalties.functional import dragan, max_gp, r1, r1_r2, r2, wgan_gp, wgan_lp, zero_centered
from genmod.penalties.lazy import Lazy, lazy_adam
from genmod.penalties.modules import (
    DRAGAN,
    R1,
    R1R2,
    R2,
    WGANGP,
    WGANLP,
    ApproximateR1,
    ApproximateR2,
    MaxGP,
    Penalty,
    ZeroCentered,
)
from genmod.penalties.path_length import PathLength, path_lengths
from genmod.penalties.shared_gradient import value_and_input_gradient
from genmod.penalties.step import CriticStep, critic_step

__all__ = [
    "DRAGAN",
    "R1",
    "R1R2",
    "R2",
    "WGANGP",
    "WGANLP",
    "ApproximateR1",
    "ApproximateR2",
    "CriticStep",
    "Lazy",
    "MaxGP",
    "PathLength",
    "Penalty",
    "ZeroCentered",
    "approximate_r1",
    "approximate_r2",
    "critic_step",
    "dragan",
    "lazy_adam",
    "max_gp",
    "path_lengths",
    "r1",
    "r1_r2",
    "r2",
    "value_and_input_gradient",
    "wgan_gp",
    "wgan_lp",
    "zero_centered",
]
