"""Fused operations: public functions, and the dispatcher ops behind them."""

from genmod import backends
from genmod.ops.gaussian import clamp_logvar, gaussian_kl, reparameterize, sample_kl
from genmod.ops.reconstruction import bernoulli_nll, discretized_logistic_nll, gaussian_nll, l1, laplace_nll, mse

__all__ = ["clamp_logvar", "gaussian_kl", "reparameterize", "sample_kl"]
__all__ += ["bernoulli_nll", "discretized_logistic_nll", "gaussian_nll", "l1", "laplace_nll", "mse"]

backends.force_from_environment()
