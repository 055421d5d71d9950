"""Whole systems, each configured by a small dataclass and built from `genmod.nn`."""

from genmod.models.conv_vae import ConvVAE, ConvVAEConfig, VAELoss

__all__ = ["ConvVAE", "ConvVAEConfig", "VAELoss"]
