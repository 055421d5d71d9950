"""The recipes by name: a model, and settings with which one CPU core trains it in a minute or two."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from genmod.models import GAN, VAE, Autoencoder, AutoencoderConfig, GANConfig, Model, VAEConfig
from genmod.recipes import RecipeError
from genmod.recipes.data import ImageSet
from genmod.recipes.trainer import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """model: the class. options: of its configuration. training: of `TrainConfig`. about: one line for the help."""

    model: type[Model]
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


# Learning rates and betas of the GANs: those of the papers, but for the rates, which small images allow to be higher.
RECIPES: dict[str, Recipe] = {
    "ae": Recipe(Autoencoder, "autoencoder"),
    "denoising-ae": Recipe(Autoencoder, "autoencoder that removes noise", {"objective": "denoising"}),
    "vae": Recipe(VAE, "variational autoencoder"),
    "beta-vae": Recipe(VAE, "divergence weighted by 4", {"beta": 4.0}),
    "annealed-vae": Recipe(VAE, "weight of the divergence rises from 0", {"objective": "annealed"}),
    "capacity-vae": Recipe(VAE, "divergence held at a capacity that rises", {"objective": "capacity"}),
    "beta-tcvae": Recipe(VAE, "total correlation weighted by 4", {"objective": "beta_tc", "beta": 4.0}),
    "dip-vae": Recipe(VAE, "covariance of the latents' means held at the identity", {"objective": "dip_i"}),
    "wae": Recipe(VAE, "Wasserstein autoencoder: MMD instead of the divergence", {"objective": "wae"}),
    "info-vae": Recipe(VAE, "InfoVAE: MMD besides half of the divergence", {"objective": "wae", "alpha": 0.5}),
    "iwae": Recipe(VAE, "importance-weighted, 5 samples", {"objective": "iwae"}),
    "dcgan": Recipe(
        GAN,
        "deep convolutional GAN",
        {"objective": "dcgan"},
        {"learning_rate": 5e-4, "betas": (0.5, 0.999), "steps": 1000},
    ),
    "wgan-gp": Recipe(
        GAN,
        "Wasserstein GAN with gradient penalty",
        {"objective": "wgan_gp", "critic_steps": 3},
        {"learning_rate": 5e-4, "betas": (0.0, 0.9), "steps": 1000},
    ),
    "r3gan": Recipe(
        GAN,
        "relativistic GAN with R1 and R2",
        {"objective": "r3gan"},
        {"learning_rate": 5e-4, "betas": (0.0, 0.99), "steps": 1000},
    ),
}

_CONFIGS: dict[type[Model], type] = {Autoencoder: AutoencoderConfig, VAE: VAEConfig, GAN: GANConfig}


def build(name: str, images: ImageSet, **options: Any) -> Model:
    """The model of a recipe for these images, with fresh weights from torch's global generator.

    Args:
        name: of the recipe.
        images: what it is to be trained on.
        options: of the model's configuration, instead of the recipe's own.

    Raises:
        RecipeError: images of a size that the model cannot take, or options that it does not have.
    """
    recipe = RECIPES[name]
    _, channels, height, width = images.images.shape
    if height != width:
        raise RecipeError(f"images of {height} x {width} pixels: {name} takes square ones")
    small = height <= 16
    config: dict[str, Any] = {
        "image_size": height,
        "channels": channels,
        "latent_dim": min(2 * height, 64),
        "width": 32 if small else 16,
        "stages": stages_of(height),
        **recipe.options,
    }
    if recipe.model is VAE:
        # The pixels of the digits are counts out of 16, so these are their trials; of other images 4 ask for detail.
        config |= {"trials": 16 if small else 4, "dataset_size": len(images.train)}
    try:
        return recipe.model(_CONFIGS[recipe.model](**{**config, **options}))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{name} for images of {height} x {width} pixels: {error}") from error


def stages_of(size: int) -> int:
    """How often models halve images of this size: to no less than 2 pixels, at most 3 times."""
    for stages in (3, 2):
        if size % 2**stages == 0 and size // 2**stages > 1:
            return stages
    raise RecipeError(f"images of {size} x {size} pixels: wanted a multiple of 4 that is at least 8; give --size")


# Pretext tasks that need more steps on photographs than all others, to be clearly better than chance.
_LONGER = {"rotation": 3000, "next_step": 3000, "future": 2000}


def training(name: str, images: ImageSet, **changes: Any) -> TrainConfig:
    """The settings of a recipe, or of a pretext task, for these images, with the changes that are not None."""
    small = images.images.shape[-1] <= 16
    settings: dict[str, Any] = {
        "steps": 600 if small else _LONGER.get(name, 600),
        "batch": 64 if small else 32,
        "learning_rate": 2e-3 if small else 1e-3,
        **(RECIPES[name].training if name in RECIPES else {}),
        **{key: value for key, value in changes.items() if value is not None},
    }
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    assert settings.keys() <= known, settings.keys() - known
    return TrainConfig(**settings)
