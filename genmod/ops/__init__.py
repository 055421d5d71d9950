"""Fused operations: public functions, and the dispatcher ops behind them."""

from genmod import backends
from genmod.ops.gaussian import clamp_logvar, gaussian_kl, gaussian_nll, reparameterize, sample_kl
from genmod.ops.norm_act import batch_norm_act, bias_act, group_norm_act
from genmod.ops.upsample_conv import conv_transpose2d_norm_act, upsample_conv2d

__all__ = ["clamp_logvar", "gaussian_kl", "gaussian_nll", "reparameterize", "sample_kl"]
__all__ += ["batch_norm_act", "bias_act", "group_norm_act"]
__all__ += ["conv_transpose2d_norm_act", "upsample_conv2d"]

backends.force_from_environment()
