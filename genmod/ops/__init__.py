"""Fused operations: public functions, and the dispatcher ops behind them."""

from genmod import backends
from genmod.ops.adversarial import critic_loss, generator_loss, lecam
from genmod.ops.critic import critic_leaky_relu
from genmod.ops.critic_conv import critic_conv2d
from genmod.ops.gaussian import clamp_logvar, gaussian_kl, gaussian_nll, reparameterize, sample_kl

__all__ = [
    "clamp_logvar",
    "critic_conv2d",
    "critic_leaky_relu",
    "critic_loss",
    "gaussian_kl",
    "gaussian_nll",
    "generator_loss",
    "lecam",
    "reparameterize",
    "sample_kl",
]

backends.force_from_environment()
