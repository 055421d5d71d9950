"""Fused operations: public functions, and the dispatcher ops behind them."""

from genmod import backends
from genmod.ops.gaussian import clamp_logvar, gaussian_kl, gaussian_nll, reparameterize, sample_kl
from genmod.ops.logistic_mixture import logistic_mixture_nll, logistic_mixture_sample

__all__ = [
    "clamp_logvar",
    "gaussian_kl",
    "gaussian_nll",
    "logistic_mixture_nll",
    "logistic_mixture_sample",
    "reparameterize",
    "sample_kl",
]

backends.force_from_environment()
