"""The GANs: both losses of each against their formula in float64, penalties by autograd; and the averaged weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genmod.models import GAN, GANConfig
from genmod.models.gan import OBJECTIVES

from .small import SMALL, check_draws, check_phases, images, train


def make(**options: Any) -> GAN:
    torch.manual_seed(0)
    return GAN(GANConfig(**{**SMALL, **options}))


def square_norms(critic: Any, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3))


def expected_losses(model: GAN, x: Tensor, draws: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The critic's terms and the generator's loss."""
    critic, weight = model.critic, model.config.penalty_weight
    real, fake = 2 * x - 1, model.generator(draws["z"])
    r, f, fixed = critic(real), critic(fake), fake.detach()
    if model.config.objective == "dcgan":
        return {"adversarial": F.softplus(-r).mean() + F.softplus(critic(fixed)).mean()}, F.softplus(-f).mean()
    if model.config.objective == "wgan_gp":
        t = draws["between"].view(-1, 1, 1, 1)
        slopes = square_norms(critic, t * real + (1 - t) * fixed).sqrt()
        penalty = weight * (slopes - 1).square().mean()
        return {"adversarial": critic(fixed).mean() - r.mean(), "penalty": penalty}, -f.mean()
    penalty = weight / 2 * (square_norms(critic, real).mean() + square_norms(critic, fixed).mean())
    return {"adversarial": F.softplus(critic(fixed) - r).mean(), "penalty": penalty}, F.softplus(r - f).mean()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_are_their_formulas(objective: str) -> None:
    model, x = make(objective=objective).double(), images().double()
    draws = {name: t.double() for name, t in model.draw("critic", 6, torch.Generator().manual_seed(0)).items()}
    terms, for_generator = expected_losses(model, x, draws)
    found = model.critic_loss(x, draws=draws)
    assert found.parts.keys() == terms.keys()
    for name, value in terms.items():
        torch.testing.assert_close(found.parts[name], value.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.loss, sum(terms.values()))
    weights = list(model.critic.parameters())
    expected = torch.autograd.grad(sum(terms.values()), weights, retain_graph=True, allow_unused=True)
    model.backward("critic", x, draws)
    for p, gradient in zip(weights, expected):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(model.generator_loss(x, draws={"z": draws["z"]}).loss, for_generator)


def test_large_batches_take_the_shared_gradient() -> None:
    """Which they do from a size on that small tests do not reach: the same numbers."""
    model = make(objective="r3gan", image_size=32, channels=3, stages=3)
    x = images(12, 3, 32)
    draws = model.draw("critic", 12, torch.Generator().manual_seed(0))
    terms, _ = expected_losses(model, x, draws)
    weights = list(model.critic.parameters())
    expected = torch.autograd.grad(sum(terms.values()), weights)
    model.backward("critic", x, draws)
    for p, gradient in zip(weights, expected):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_phases_and_draws(objective: str) -> None:
    model = make(objective=objective)
    check_draws(model)
    check_phases(model, images())


def test_critic_steps() -> None:
    assert make(critic_steps=3).phases == ("critic", "critic", "critic", "generator")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_learns_what_the_images_look_like(objective: str) -> None:
    """All of one colour: the generator gets close to it from a beginning that is not."""
    model, x = make(objective=objective, width=8, average=0.8), torch.full((16, 1, 8, 8), 0.9)
    before = (model.sample(32, torch.Generator().manual_seed(0)) - 0.9).abs().mean()
    train(model, x, 60, rate=5e-3)
    after = (model.sample(32, torch.Generator().manual_seed(0)) - 0.9).abs().mean()
    assert after < 0.5 * before


def test_relativistic_critic_tells_a_batch_apart() -> None:
    model, x = make(objective="r3gan", penalty=0.01), images(8)
    optimizer = torch.optim.Adam(model.phase_parameters("critic"), 3e-3)
    draws = model.draw("critic", 8, torch.Generator().manual_seed(0))
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(model.backward("critic", x, draws).loss.item())
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


# ---------------------------------------------------------------------------------------------------- averaged weights


def test_average_follows_the_generator_once_a_step() -> None:
    model, x = make(average=0.5), images()
    start = [p.clone() for p in model.averaged.parameters()]
    with torch.no_grad():
        for p in model.generator.parameters():
            p.add_(1.0)
    for part in (x[:3], x[3:]):  # one step in two parts
        model.backward("generator", part, model.draw("generator", 3), step=40)
    for mean, before in zip(model.averaged.parameters(), start):
        torch.testing.assert_close(mean, before + 0.5)
    model.backward("generator", x, model.draw("generator", 6), step=41)
    for mean, before in zip(model.averaged.parameters(), start):
        torch.testing.assert_close(mean, before + 0.75)
    assert not any(p.requires_grad for p in model.averaged.parameters())


def test_images_come_from_the_average() -> None:
    model = make(objective="dcgan", average=0.9)
    z = torch.randn(4, 3)
    expected = model.decode(z)
    with torch.no_grad():
        for p in model.generator.parameters():
            p.add_(1.0)
    assert torch.equal(model.train().decode(z), expected)  # whatever the mode: batch norm is in evaluation mode
    assert torch.equal(model.decode(z[:1]), expected[:1]) or torch.allclose(
        model.decode(z[:1]), expected[:1], atol=1e-6
    )


def test_without_an_average() -> None:
    model = make(average=0.0).eval()
    assert model.averaged is None
    z = torch.randn(4, 3)
    assert torch.equal(model.decode(z), (model.generator(z) + 1) / 2)
    with torch.no_grad():
        assert not model.generator(z).requires_grad
    assert model.decode(z.requires_grad_()).requires_grad  # so that it can be inverted


# --------------------------------------------------------------------------------------------------------------- other


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bfloat16_autocast(objective: str) -> None:
    model, x = make(objective=objective, width=8), images()
    for phase in model.phases:
        draws = model.draw(phase, 6, torch.Generator().manual_seed(0))
        expected = copy.deepcopy(model).backward(phase, x, draws).loss
        with torch.autocast("cpu", torch.bfloat16):
            found = model.backward(phase, x, draws).loss
        torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.phase_parameters(phase))


def test_there_is_no_encoder_and_no_single_loss() -> None:
    model = make()
    with pytest.raises(NotImplementedError, match="GAN has no encoder"):
        model.encode(images())
    with pytest.raises(NotImplementedError, match="call critic_loss or generator_loss"):
        model.loss(images())


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"objective": "stylegan"}, ValueError, "objective: got 'stylegan', expected one of 'dcgan', 'wgan_gp'"),
        ({"average": 1.0}, ValueError, r"average: got 1\.0, expected a number in \[0, 1\)"),
        ({"penalty": -1.0}, ValueError, r"penalty: got -1\.0, expected a finite number >= 0"),
        ({"penalty": 1.0, "objective": "dcgan"}, ValueError, r"penalty: got 1\.0, expected None"),
        ({"critic_steps": 0}, ValueError, "critic_steps: got 0, expected a positive integer"),
        ({"image_size": 10}, ValueError, "image_size: got 10, expected a multiple of"),
    ],
    ids=str,
)
def test_bad_config(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GANConfig(**{**SMALL, **wrong})
