"""Whole systems, each configured by a small dataclass and built from `genmod.nn`."""

from genmod.models.autoencoder import Autoencoder, AutoencoderConfig
from genmod.models.base import CheckpointError, Losses, Model, load
from genmod.models.gan import GAN, GANConfig
from genmod.models.transfer import Classifier, transfer
from genmod.models.vae import VAE, Encoding, VAEConfig

__all__ = [
    "GAN",
    "VAE",
    "Autoencoder",
    "AutoencoderConfig",
    "CheckpointError",
    "Classifier",
    "Encoding",
    "GANConfig",
    "Losses",
    "Model",
    "VAEConfig",
    "load",
    "transfer",
]
