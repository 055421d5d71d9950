"""Whole systems, each configured by a small dataclass and built from `genmod.nn`."""

from genmod.models.autoencoder import Autoencoder, AutoencoderConfig
from genmod.models.base import CheckpointError, Losses, Model, load
from genmod.models.conv_vae import ConvVAE, ConvVAEConfig, VAELoss

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "CheckpointError",
    "ConvVAE",
    "ConvVAEConfig",
    "Losses",
    "Model",
    "VAELoss",
    "load",
]
