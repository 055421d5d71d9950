"""Fused operations: public functions, and the dispatcher ops behind them."""

from genmod import backends
from genmod.ops.gaussian import clamp_logvar, gaussian_kl, gaussian_nll, reparameterize, sample_kl
from genmod.ops.upsample_conv import upsample_conv2d

__all__ = ["clamp_logvar", "gaussian_kl", "gaussian_nll", "reparameterize", "sample_kl"]
__all__ += ["upsample_conv2d"]

backends.force_from_environment()
