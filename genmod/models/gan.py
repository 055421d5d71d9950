"""Generative adversarial networks, one class for the family: the game that is played is a parameter."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from genmod import ops, penalties
from genmod.models import configs
from genmod.models.base import Draws, Losses, Model
from genmod.models.networks import Critic, Generator
from genmod.ops.adversarial import Kind

OBJECTIVES = ("dcgan", "wgan_gp", "r3gan")
_LOSS: dict[str, Kind] = {"dcgan": "non_saturating", "wgan_gp": "wasserstein", "r3gan": "relativistic"}
_PENALTY = {"dcgan": 0.0, "wgan_gp": 10.0, "r3gan": 1.0}


@dataclass(frozen=True)
class GANConfig:
    """What a :class:`GAN` is made of and what it plays for.

    Attributes:
        image_size: height and width, a multiple of 2**stages.
        channels: 1 for grey, 3 for colour.
        latent_dim: numbers that an image is made from.
        width: feature maps next to the image; they double with each stage away from it, up to four times as many.
        stages: how often the critic halves the image.
        objective: "dcgan", "wgan_gp" or "r3gan"; see :class:`GAN`.
        penalty: weight of the gradient penalty, for "wgan_gp" and "r3gan"; None is 10 and 1.
        critic_steps: steps of the critic for each step of the generator; 5 in WGAN-GP's paper.
        average: decay of the moving average of the generator's weights that images are drawn from; 0 for none.
    """

    image_size: int = 32
    channels: int = 3
    latent_dim: int = 64
    width: int = 32
    stages: int = 3
    objective: Literal["dcgan", "wgan_gp", "r3gan"] = "r3gan"
    penalty: float | None = None
    critic_steps: int = 1
    average: float = 0.99

    def __post_init__(self) -> None:
        configs.image(self)
        configs.choice("objective", self.objective, OBJECTIVES)
        configs.whole(self, "critic_steps")
        configs.number(self, "average")
        if self.average >= 1:
            raise ValueError(f"average: got {self.average}, expected a number in [0, 1)")
        if self.penalty is not None:
            configs.number(self, "penalty")
            if self.objective == "dcgan" and self.penalty:
                raise ValueError(f"penalty: got {self.penalty}, expected None: objective='dcgan' has none")

    @property
    def penalty_weight(self) -> float:
        """The weight of the gradient penalty."""
        return _PENALTY[self.objective] if self.penalty is None else self.penalty


class GAN(Model):
    r"""A convolutional generator G and critic D, each trained against the other (Goodfellow et al., NeurIPS 2014).

    With :math:`r = D(x)`, :math:`f = D(G(z))` and :math:`\zeta(t) = \ln(1 + e^t)`:

    =========  ==================================================  =================  ================================
    objective  the critic minimises                                the generator      source
    =========  ==================================================  =================  ================================
    dcgan      :math:`\zeta(-r) + \zeta(f)`                        :math:`\zeta(-f)`  Radford et al., ICLR 2016
    wgan_gp    :math:`f - r + \lambda(\|\nabla D(\hat x)\|-1)^2`   :math:`-f`         Gulrajani et al., NeurIPS 2017
    r3gan      :math:`\zeta(f - r) + \tfrac\gamma2\|\nabla D(x)    :math:`\zeta(r-f)` Huang et al., NeurIPS 2024
               \|^2 + \tfrac\gamma2\|\nabla D(G(z))\|^2`                              (arXiv:2501.05417)
    =========  ==================================================  =================  ================================

    :math:`\hat x` lies at a random point between an image and a generated one. The critic is piecewise linear, so the
    exact penalties take the shared gradient of `genmod.penalties`. The generator has batch norm for "dcgan" and
    "wgan_gp", and no norm for "r3gan"; the critic has none, because a penalty on each sample's own gradient forbids it.

    Images are drawn from a moving average of the generator's weights, unless `config.average` is 0. It moves at the
    start of a step, in the generator's phase, by what the step before has learned.

    Parts of the critic's loss: "adversarial" and, where there is one, "penalty"; of the generator's: "adversarial".
    """

    config_class = GANConfig
    config: GANConfig

    def __init__(self, config: GANConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_dim = config.latent_dim
        self.image_shape = (config.channels, config.image_size, config.image_size)
        self.phases = ("critic",) * config.critic_steps + ("generator",)
        shape = (config.width, config.stages)
        self.critic = Critic(config.image_size, config.channels, *shape)
        self.generator = Generator(
            config.image_size,
            config.channels,
            config.latent_dim,
            *shape,
            norm="none" if config.objective == "r3gan" else "batch",
        )
        self.averaged = copy.deepcopy(self.generator).requires_grad_(False).eval() if config.average else None
        self._averaged_at = -1

    # ------------------------------------------------------------------------------------------------------- training

    def phase_parameters(self, phase: str) -> list[nn.Parameter]:
        """The critic's or the generator's parameters."""
        self._check_phase(phase)
        return list((self.critic if phase == "critic" else self.generator).parameters())

    def draw(self, phase: str, n: int, generator: torch.Generator | None = None) -> Draws:
        """Latents "z" `[n, D]`; for the critic of "wgan_gp" also where to look, "between" `[n]` in [0, 1)."""
        self._check_phase(phase)
        device = None if generator is None else generator.device
        draws = {"z": torch.randn(n, self.latent_dim, generator=generator, device=device)}
        if phase == "critic" and self.config.objective == "wgan_gp":
            draws["between"] = torch.rand(n, generator=generator, device=device)
        return draws

    def loss(self, images: Tensor, **options: object) -> Losses:
        """There is no one loss: see `critic_loss` and `generator_loss`."""
        raise NotImplementedError("a GAN minimises two losses: call critic_loss or generator_loss")

    def critic_loss(
        self, images: Tensor, *, generator: torch.Generator | None = None, draws: Draws | None = None
    ) -> Losses:
        """What the critic minimises; differentiable by its parameters."""
        self._check_images(images)
        draws = self._draws("critic", images, draws, generator)
        real = 2 * images - 1
        with torch.no_grad():
            fake = self.generator(draws["z"]).to(real.dtype)
        kind, weight, both = _LOSS[self.config.objective], self.config.penalty_weight, torch.cat((real, fake))
        if self.config.objective == "r3gan":
            values, gradients = penalties.value_and_input_gradient(self.critic, both)
            penalty = weight / 2 * _square_norms(gradients).sum() / len(real)
        else:
            values = self.critic(both)
        real_values, fake_values = values.split(len(real))
        parts = {"adversarial": ops.critic_loss(real=real_values, fake=fake_values, kind=kind)}
        if self.config.objective == "wgan_gp":
            between = torch.lerp(fake, real, draws["between"].view(-1, 1, 1, 1))
            _, gradients = penalties.value_and_input_gradient(self.critic, between)
            # Inside the root, because the norm has no derivative at zero.
            penalty = weight * ((_square_norms(gradients) + 1e-12).sqrt() - 1).square().mean()
        if self.config.objective != "dcgan":
            parts["penalty"] = penalty
        return Losses.of(**parts)

    def generator_loss(
        self, images: Tensor, *, generator: torch.Generator | None = None, draws: Draws | None = None
    ) -> Losses:
        """What the generator minimises; the images count for "r3gan" alone, which compares with them."""
        self._check_images(images)
        draws = self._draws("generator", images, draws, generator)
        fake_values = self.critic(self.generator(draws["z"]))
        real_values = None
        if self.config.objective == "r3gan":
            with torch.no_grad():
                real_values = self.critic(2 * images - 1)
        kind = _LOSS[self.config.objective]
        return Losses.of(adversarial=ops.generator_loss(fake=fake_values, real=real_values, kind=kind))

    def backward(self, phase: str, images: Tensor, draws: Draws, *, step: int = 0, scale: float = 1.0) -> Losses:
        """See :class:`Model`."""
        parameters = self.phase_parameters(phase)
        if phase == "generator":
            self._average(step)
        losses = (
            self.critic_loss(images, draws=draws) if phase == "critic" else self.generator_loss(images, draws=draws)
        )
        return losses.backward(scale, parameters)

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """Move the average once a step, however many parts its batch is cut into."""
        if self.averaged is None or step == self._averaged_at:
            return
        self._averaged_at = step
        # A short memory at first, or the weights of the beginning would stay in sight for long.
        decay = min(self.config.average, (1 + step) / (10 + step))
        for mean, weight in zip(self.averaged.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)
        for kept, value in zip(self.averaged.buffers(), self.generator.buffers(), strict=True):
            kept.copy_(value)

    def train(self, mode: bool = True) -> GAN:
        """Training or evaluation mode; the averaged generator is always in the latter."""
        super().train(mode)
        if self.averaged is not None:
            self.averaged.eval()
        return self

    # --------------------------------------------------------------------------------------------------------- images

    def decode(self, z: Tensor) -> Tensor:
        """The images that the averaged generator makes of latents; without an average, call `eval()` before."""
        self._check_latents(z)
        network = self.generator if self.averaged is None else self.averaged
        return (network(z) + 1) / 2


def _square_norms(gradients: Tensor) -> Tensor:
    wide = gradients if gradients.dtype == torch.float64 else gradients.float()
    return wide.flatten(1).square().sum(1)
