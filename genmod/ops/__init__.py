"""Fused operations: public functions, and the dispatcher ops behind them."""

from genmod import backends
from genmod.ops.adversarial import critic_loss, generator_loss, lecam
from genmod.ops.aggregate import dip, mmd, total_correlation
from genmod.ops.conv3x3 import conv3x3
from genmod.ops.conv4x4 import conv4x4
from genmod.ops.critic import critic_leaky_relu
from genmod.ops.critic_conv import critic_conv2d
from genmod.ops.gaussian import clamp_logvar, gaussian_kl, reparameterize, sample_kl
from genmod.ops.logistic_mixture import logistic_mixture_nll, logistic_mixture_sample
from genmod.ops.norm_act import batch_norm_act, bias_act, group_norm_act
from genmod.ops.reconstruction import bernoulli_nll, discretized_logistic_nll, gaussian_nll, l1, laplace_nll, mse
from genmod.ops.upsample_conv import conv_transpose2d_norm_act, upsample_conv2d

__all__ = [
    "batch_norm_act",
    "bernoulli_nll",
    "bias_act",
    "clamp_logvar",
    "conv3x3",
    "conv4x4",
    "conv_transpose2d_norm_act",
    "critic_conv2d",
    "critic_leaky_relu",
    "critic_loss",
    "dip",
    "discretized_logistic_nll",
    "gaussian_kl",
    "gaussian_nll",
    "generator_loss",
    "group_norm_act",
    "l1",
    "laplace_nll",
    "lecam",
    "logistic_mixture_nll",
    "logistic_mixture_sample",
    "mmd",
    "mse",
    "reparameterize",
    "sample_kl",
    "total_correlation",
    "upsample_conv2d",
]

backends.force_from_environment()
