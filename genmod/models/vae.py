"""Variational autoencoders, one class for the family: what is minimised is a parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from genmod.models import configs, likelihoods
from genmod.models.base import Draws, Losses, Model
from genmod.models.likelihoods import PixelLikelihood
from genmod.models.networks import ConvDecoder, ConvEncoder
from genmod.models.regularizers import Posterior, regularizer
from genmod.nn import DiagonalGaussian, GaussianSampler, ImportanceWeightedELBO

Objective = Literal["vae", "annealed", "capacity", "beta_tc", "dip_i", "dip_ii", "wae", "iwae"]
OBJECTIVES = ("vae", "annealed", "capacity", "beta_tc", "dip_i", "dip_ii", "wae", "iwae")


@dataclass(frozen=True)
class VAEConfig:
    """What a :class:`VAE` is made of and what it minimises.

    Attributes:
        image_size: height and width, a multiple of 2**stages.
        channels: 1 for grey, 3 for colour.
        latent_dim: number of latent variables.
        width: feature maps of the first stage; they double with each later one, up to four times as many.
        stages: how often the image is halved.
        objective: see :class:`VAE`.
        likelihood: of the pixels: "bernoulli", "gaussian", "discretized_logistic" or "logistic_mixture".
        trials: for "bernoulli": a pixel is the mean of so many trials, 1 for black and white, 16 for 17 grey levels;
            more of them ask for sharper images.
        sigma: for "gaussian": the standard deviation of a pixel in [0, 1].
        bins: for the logistic ones: how many grey levels there are.
        components: for "logistic_mixture": how many distributions are mixed.
        beta: weight of the divergence for "vae" and "annealed", of the total correlation for "beta_tc".
        warmup: for "annealed" and "capacity": steps over which beta or the capacity rises from zero.
        capacity, gamma: for "capacity": the divergence aimed at, in nats, and the weight of missing it.
        dataset_size: for "beta_tc", which has to know it: the number of training images.
        lambda_od, lambda_d: for "dip_i" and "dip_ii": factors off and on the diagonal; `lambda_d` None is the paper's.
        alpha, mmd_weight: for "wae": InfoVAE's alpha and lambda; alpha = 1 is the Wasserstein autoencoder.
        samples: for "iwae": samples per image.
        gradient: for "iwae": "dreg", the doubly reparameterised estimator, or "standard".
    """

    image_size: int = 32
    channels: int = 3
    latent_dim: int = 32
    width: int = 32
    stages: int = 3
    objective: Objective = "vae"
    likelihood: likelihoods.Kind = "bernoulli"
    trials: int = 1
    sigma: float = 0.1
    bins: int = 256
    components: int = 5
    beta: float = 1.0
    warmup: int = 500
    capacity: float = 25.0
    gamma: float = 30.0
    dataset_size: int | None = None
    lambda_od: float = 10.0
    lambda_d: float | None = None
    alpha: float = 1.0
    mmd_weight: float = 100.0
    samples: int = 5
    gradient: Literal["standard", "dreg"] = "dreg"

    def __post_init__(self) -> None:
        configs.image(self)
        configs.choice("objective", self.objective, OBJECTIVES)
        configs.choice("likelihood", self.likelihood, likelihoods.KINDS)
        configs.choice("gradient", self.gradient, ("standard", "dreg"))
        configs.whole(self, "trials", "bins", "components", "warmup", "samples")
        configs.number(self, "beta", "capacity", "gamma", "lambda_od", "alpha", "mmd_weight")
        configs.number(self, "sigma", above=0.0)
        if self.lambda_d is not None:
            configs.number(self, "lambda_d")
        if self.bins < 2:
            raise ValueError(f"bins: got {self.bins}, expected at least 2")
        if self.alpha > 1 or self.alpha + self.mmd_weight < 1:
            raise ValueError(
                f"alpha: got {self.alpha} with mmd_weight={self.mmd_weight}, expected alpha <= 1 and "
                "alpha + mmd_weight >= 1, so that neither weight is negative"
            )
        if self.likelihood == "logistic_mixture" and self.channels not in (1, 3):
            raise ValueError(f"channels: got {self.channels}, expected 1 or 3 with likelihood='logistic_mixture'")
        if self.dataset_size is not None:
            configs.whole(self, "dataset_size")
        elif self.objective == "beta_tc":
            raise ValueError(
                "dataset_size: got None, expected the number of training images, from which objective='beta_tc' "
                "estimates the density of the aggregate posterior"
            )


class Encoding(NamedTuple):
    """What :meth:`VAE.encode` returns, under the name that diffusers uses."""

    latent_dist: DiagonalGaussian


class VAE(Model):
    r"""A convolutional variational autoencoder (Kingma and Welling, ICLR 2014) with the objective as a parameter.

    With :math:`R = -\ln p(x|z)`, :math:`\mathrm{KL} = \mathrm{KL}(q(z|x) \| p(z))` and averages over the batch:

    ==========  ===================================================  =============================================
    objective   minimised                                            source
    ==========  ===================================================  =============================================
    vae         :math:`R + \beta\,\mathrm{KL}`                       Higgins et al., ICLR 2017; beta = 1 the ELBO
    annealed    the same, beta rising from 0                         Bowman et al., CoNLL 2016
    capacity    :math:`R + \gamma\,|\mathrm{KL} - C|`, C rising      Burgess et al., 2018
    beta_tc     :math:`R + I(x;z) + \beta\,\mathrm{TC}(z) +          Chen et al., NeurIPS 2018
                \sum_j\mathrm{KL}(q(z_j)\|p(z_j))`
    dip_i, ii   :math:`R + \mathrm{KL}` + DIP of the covariance      Kumar et al., ICLR 2018
    wae         :math:`R + (1-\alpha)\mathrm{KL} +                   Tolstikhin et al., ICLR 2018; Zhao et al.,
                (\alpha+\lambda-1)\,\mathrm{MMD}(q(z), p(z))`        AAAI 2019
    iwae        :math:`-\ln\frac1K\sum_k p(x,z_k)/q(z_k|x)`          Burda et al., ICLR 2016; Tucker et al., 2019
    ==========  ===================================================  =============================================

    Everything is in nats per image. The parts of the loss are its summands, weights included: "reconstruction" and, by
    objective, "kl", "capacity", "mutual_information", "total_correlation", "dimension_kl", "dip", "mmd", "bound".

    Args:
        config: see :class:`VAEConfig`.
        sampler: `(params [B, 2 D], noise=None) -> (z [B, D], kl)`, params with the means first and then the
            log-variances, kl summed over the latents and averaged over the batch. The default is
            :class:`genmod.nn.GaussianSampler`.
    """

    config_class = VAEConfig
    config: VAEConfig

    def __init__(self, config: VAEConfig, sampler: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.latent_dim = config.latent_dim
        self.image_shape = (config.channels, config.image_size, config.image_size)
        self.likelihood = PixelLikelihood(
            config.likelihood,
            config.channels,
            trials=config.trials,
            sigma=config.sigma,
            bins=config.bins,
            components=config.components,
        )
        shape = (config.width, config.stages)
        self.encoder = ConvEncoder(config.image_size, config.channels, *shape)
        self.to_latent = nn.Linear(self.encoder.num_features, 2 * config.latent_dim)
        self.decoder = ConvDecoder(config.image_size, self.likelihood.output_channels, config.latent_dim, *shape)
        self.sampler = GaussianSampler() if sampler is None else sampler
        self.regularizer = regularizer(config)
        self.bound: ImportanceWeightedELBO | None = None
        if self.regularizer is None:
            self.bound = ImportanceWeightedELBO(self.likelihood, config.samples, gradient=config.gradient)

    # ------------------------------------------------------------------------------------------------------- training

    def draw(self, phase: str, n: int, generator: torch.Generator | None = None) -> Draws:
        """The "noise" of the latents, `[n, D]` (for "iwae" `[n, K, D]`); for "wae" also latents from the "prior"."""
        self._check_phase(phase)
        config = self.config
        shape = (n, config.samples, self.latent_dim) if config.objective == "iwae" else (n, self.latent_dim)
        names = ("noise", "prior") if config.objective == "wae" else ("noise",)
        device = None if generator is None else generator.device
        return {name: torch.randn(shape, generator=generator, device=device) for name in names}

    def loss(
        self, images: Tensor, *, step: int = 0, generator: torch.Generator | None = None, draws: Draws | None = None
    ) -> Losses:
        """See :class:`Model`; `step` matters for "annealed" and "capacity"."""
        draws = self._draws("model", images, draws, generator)
        params = self.parameters_of(images)
        noise = draws["noise"].to(params.dtype)
        if self.bound is not None:
            bound = self.bound(self.decoder, images, DiagonalGaussian(params), noise=noise.transpose(0, 1))
            return Losses.of(bound=bound.loss)
        z, kl = self.sampler(params, noise=noise)
        reconstruction = self.likelihood(self.decoder(z), images).mean()
        mean, logvar = params.chunk(2, 1)
        terms = self.regularizer(Posterior(z, mean, logvar, kl, draws.get("prior")), step)
        return Losses.of(reconstruction=reconstruction, **terms)

    def elbo(self, images: Tensor, *, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Losses:
        """The negative evidence lower bound, whatever the objective is: parts "reconstruction" and "kl".

        noise: standard normal `[B, D]`, instead of drawing it.
        """
        if noise is None:
            noise = torch.randn(len(images), self.latent_dim, generator=generator, device=_device(images, generator))
        params = self.parameters_of(images)
        z, kl = self.sampler(params, noise=noise.to(params))
        return Losses.of(reconstruction=self.likelihood(self.decoder(z), images).mean(), kl=kl)

    # --------------------------------------------------------------------------------------------------------- images

    def parameters_of(self, images: Tensor) -> Tensor:
        """Parameters of q(z|x), `[B, 2 D]`: means, then log-variances."""
        self._check_images(images)
        return self.to_latent(self.encoder(images))

    def encode(self, images: Tensor) -> Encoding:
        """q(z|x), as `.latent_dist`, with `sample`, `mode`, `kl` and the rest of diffusers' class."""
        return Encoding(DiagonalGaussian(self.parameters_of(images)))

    def latents(self, images: Tensor) -> Tensor:
        """The means of q(z|x)."""
        return self.parameters_of(images)[:, : self.latent_dim]

    def decode(self, z: Tensor) -> Tensor:
        """The expected images of latents."""
        self._check_latents(z)
        return self.likelihood.mean(self.decoder(z))


def _device(images: Tensor, generator: torch.Generator | None) -> torch.device:
    return images.device if generator is None else generator.device
