"""A training step of each model, optimiser included, against the same model on stock modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmod.bench.step import Contenders, Step
from genmod.bench.steps.stock import stock
from genmod.models import GAN, VAE, Autoencoder, AutoencoderConfig, GANConfig, Model, VAEConfig

BATCH = 64
#: From the gradients of one phase to a call that leaves them in `.grad`.
Backward = Callable[[Model, str, Tensor, dict[str, Tensor]], None]


def genmod_backward(model: Model, phase: str, images: Tensor, draws: dict[str, Tensor]) -> None:
    """The model's own."""
    model.backward(phase, images, draws)


def stock_backward(model: Model, phase: str, images: Tensor, draws: dict[str, Tensor]) -> None:
    """The same as people write it, for a model of stock modules."""
    if isinstance(model, GAN):
        _stock_gan(model, phase, images, draws)
    else:
        model.loss(images, draws=draws).loss.backward()


def _square_norms(critic: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3))


def _stock_gan(model: GAN, phase: str, images: Tensor, draws: dict[str, Tensor]) -> None:
    """Both losses as people write them: the penalty a backward of a backward through a forward of its own."""
    critic, real, weight, objective = model.critic, 2 * images - 1, model.config.penalty_weight, model.config.objective
    if phase == "generator":
        model._average(0)
        f = critic(model.generator(draws["z"]))
        if objective == "r3gan":
            with torch.no_grad():
                r = critic(real)
            loss = F.softplus(r - f).mean()
        else:
            loss = -f.mean() if objective == "wgan_gp" else F.softplus(-f).mean()
        loss.backward(inputs=list(model.generator.parameters()))
        return
    with torch.no_grad():
        fake = model.generator(draws["z"])
    r, f = critic(real), critic(fake)
    if objective == "dcgan":
        loss = F.softplus(-r).mean() + F.softplus(f).mean()
    elif objective == "wgan_gp":
        between = torch.lerp(fake, real, draws["between"].view(-1, 1, 1, 1))
        loss = f.mean() - r.mean() + weight * ((_square_norms(critic, between) + 1e-12).sqrt() - 1).square().mean()
    else:
        penalty = _square_norms(critic, real).mean() + _square_norms(critic, fake).mean()
        loss = F.softplus(f - r).mean() + weight / 2 * penalty
    loss.backward()


def _compile(model: Model) -> Model:
    """torch.compile where it can: of all but a critic with a penalty, whose second derivative it refuses."""
    if isinstance(model, GAN):
        model.generator.compile()
        if model.config.objective == "dcgan":
            model.critic.compile()
        return model
    model.loss = torch.compile(model.loss)  # type: ignore[method-assign]
    return model


def training_step(model: Model, images: Tensor, backward: Backward) -> Callable[[], None]:
    """All phases of a step with their optimisers, on the same images and random numbers each time."""
    optimizers = {p: torch.optim.Adam(model.phase_parameters(p), 1e-5) for p in dict.fromkeys(model.phases)}
    draws = {phase: _draws(model, phase, images) for phase in optimizers}

    def step() -> None:
        for phase in model.phases:
            optimizers[phase].zero_grad()
            backward(model, phase, images, draws[phase])
            optimizers[phase].step()

    return step


def _draws(model: Model, phase: str, images: Tensor) -> dict[str, Tensor]:
    """What a phase draws, where the images are and as exact; places and classes stay whole numbers."""
    drawn = model.draw(phase, len(images), torch.Generator().manual_seed(0))
    return {name: t.to(images) if t.is_floating_point() else t.to(images.device) for name, t in drawn.items()}


def _contenders(make: Callable[[], Model], batch: int, device: torch.device, dtype: torch.dtype) -> Contenders:
    model = make().to(device, dtype)
    images = torch.rand(batch, *model.image_shape, device=device, dtype=dtype)
    plain: Any = stock(model)
    agree(model, plain, images)
    return {
        "eager": training_step(plain, images, stock_backward),
        "compile": training_step(_compile(stock(model)), images, stock_backward),  # type: ignore[arg-type]
        "genmod": training_step(model, images, genmod_backward),
    }


def agree(ours: Model, plain: Model, images: Tensor, backward: Backward = stock_backward) -> None:
    """Raise AssertionError where the gradients are not the same: no time is reported for a step with other ones."""
    for phase in dict.fromkeys(ours.phases):
        draws = _draws(ours, phase, images)
        genmod_backward(ours, phase, images, draws)
        backward(plain, phase, images, draws)
        for mine, theirs in zip(ours.phase_parameters(phase), plain.phase_parameters(phase), strict=True):
            # In the large: an activation that rounding moves across a kink changes a whole pixel's gradient.
            assert mine.grad is not None and theirs.grad is not None
            assert (mine.grad - theirs.grad).norm() <= 1e-2 * theirs.grad.norm() + 1e-5, phase
            mine.grad = theirs.grad = None


def _named(name: str, make: Callable[[], Model]) -> Step:
    return Step(
        "model_step",
        f"{name} [{BATCH}, 3, 32, 32]",
        lambda device, dtype: _contenders(make, BATCH, device, dtype),
        lambda device, dtype: _contenders(make, 4, device, dtype),
    )


def _vae(name: str, **options: Any) -> Step:
    return _named(name, lambda: VAE(VAEConfig(dataset_size=10_000, **options)))


STEPS = (
    _named("autoencoder", lambda: Autoencoder(AutoencoderConfig())),
    _vae("VAE"),
    _vae("VAE, logistic mixture", likelihood="logistic_mixture"),
    _vae("β-TCVAE", objective="beta_tc", beta=6.0),
    _vae("WAE", objective="wae"),
    _vae("DIP-VAE II", objective="dip_ii"),
    _vae("IWAE", objective="iwae"),
    _named("DCGAN", lambda: GAN(GANConfig(objective="dcgan"))),
    _named("WGAN-GP", lambda: GAN(GANConfig(objective="wgan_gp"))),
    _named("R3GAN", lambda: GAN(GANConfig(objective="r3gan"))),
)
