"""Fused operations: public functions, and the dispatcher ops behind them."""

from genmod import backends
from genmod.ops.aggregate import dip, mmd, total_correlation
from genmod.ops.gaussian import clamp_logvar, gaussian_kl, gaussian_nll, reparameterize, sample_kl

__all__ = [
    "clamp_logvar",
    "dip",
    "gaussian_kl",
    "gaussian_nll",
    "mmd",
    "reparameterize",
    "sample_kl",
    "total_correlation",
]

backends.force_from_environment()
