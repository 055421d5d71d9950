"""Each penalty against its formula, written out with autograd; the schedule; modules; errors."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmod import penalties

from .critics import dcgan

ENGINES = ("auto", "shared", "autograd")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def critic() -> nn.Module:
    return dcgan().double()


@pytest.fixture
def real() -> Tensor:
    return torch.randn(4, 3, 8, 8, dtype=torch.float64)


@pytest.fixture
def fake() -> Tensor:
    return torch.randn(4, 3, 8, 8, dtype=torch.float64) * 2 + 1


def square_norms(critic: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return g.flatten(1).square().sum(1)


def points(real: Tensor, fake: Tensor, seed: int) -> Tensor:
    t = torch.rand(4, 1, 1, 1, dtype=real.dtype, generator=torch.Generator().manual_seed(seed))
    return fake + t * (real - fake)


def around(real: Tensor, seed: int) -> Tensor:
    noise = torch.rand(real.shape, dtype=real.dtype, generator=torch.Generator().manual_seed(seed))
    return real + 0.5 * real.std(correction=0) * noise


def norms(critic: nn.Module, x: Tensor) -> Tensor:
    return (square_norms(critic, x) + 1e-12).sqrt()


def drawing(function, *names, **options):
    """The penalty with its noise seeded as in the formulas below."""

    def call(critic, real, fake, engine):
        samples = {"real": real, "fake": fake}
        generator = torch.Generator().manual_seed(7)
        return function(critic, *(samples[n] for n in names), generator=generator, engine=engine, **options)

    return call


FORMULAS = {
    "r1": (lambda c, r, f, e: penalties.r1(c, r, gamma=3.0, engine=e), lambda c, r, f: 1.5 * square_norms(c, r).mean()),
    "r2": (lambda c, r, f, e: penalties.r2(c, f, gamma=3.0, engine=e), lambda c, r, f: 1.5 * square_norms(c, f).mean()),
    "r1_r2": (
        lambda c, r, f, e: penalties.r1_r2(c, r, f, gamma=3.0, engine=e),
        lambda c, r, f: 1.5 * (square_norms(c, r).mean() + square_norms(c, f).mean()),
    ),
    "wgan_gp": (
        drawing(penalties.wgan_gp, "real", "fake", weight=5.0),
        lambda c, r, f: 5 * (norms(c, points(r, f, 7)) - 1).square().mean(),
    ),
    "wgan_lp": (
        drawing(penalties.wgan_lp, "real", "fake", weight=5.0, target=0.05),
        lambda c, r, f: 5 * F.relu(norms(c, points(r, f, 7)) - 0.05).square().mean(),
    ),
    "dragan": (
        drawing(penalties.dragan, "real", weight=5.0),
        lambda c, r, f: 5 * (norms(c, around(r, 7)) - 1).square().mean(),
    ),
    "zero_centered": (
        drawing(penalties.zero_centered, "real", "fake", gamma=3.0),
        lambda c, r, f: 1.5 * square_norms(c, points(r, f, 7)).mean(),
    ),
    "max_gp": (
        drawing(penalties.max_gp, "real", "fake", weight=5.0),
        lambda c, r, f: 5 * square_norms(c, points(r, f, 7)).max(),
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("penalty", "formula"), FORMULAS.values(), ids=FORMULAS)
def test_formula(penalty, formula, engine, critic, real, fake):
    ours, expected = penalty(critic, real, fake, engine), formula(critic, real, fake)
    torch.testing.assert_close(ours, expected)
    assert ours.shape == ()
    assert expected > 0
    parameters = list(critic.parameters())
    grads = [torch.autograd.grad(t, parameters, allow_unused=True) for t in (ours, expected)]
    for a, b in zip(*grads):
        assert (a is None or not a.any()) if b is None else torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_flat_critic_has_finite_gradients(real, fake):
    critic = nn.Sequential(nn.Flatten(), nn.Linear(192, 1)).double()
    nn.init.zeros_(critic[1].weight)
    for engine in ("shared", "autograd"):
        critic.zero_grad()
        loss = penalties.wgan_gp(critic, real, fake, engine=engine)
        loss.backward()
        assert critic[1].weight.grad.isfinite().all()
        torch.testing.assert_close(loss.item(), 10.0, rtol=1e-4, atol=0)


def test_approximation_converges_to_r1(critic, real):
    exact = penalties.r1(critic, real, gamma=2.0).item()
    estimates = [
        penalties.approximate_r1(critic, real.repeat(64, 1, 1, 1), gamma=2.0, sigma=1e-4).item() for _ in range(40)
    ]
    mean, spread = torch.tensor(estimates).mean().item(), torch.tensor(estimates).std().item() / math.sqrt(40)
    assert abs(mean - exact) < 4 * spread
    assert spread < 0.05 * exact


def test_approximation_is_unbiased_in_bfloat16():
    """Rounding x + sigma e to bfloat16 adds noise of its own, by which the plain squared difference is too large."""
    weight = torch.randn(1, 4096)
    critic = nn.Linear(4096, 1, bias=False).to(torch.bfloat16)
    critic.weight.data.copy_(weight)
    x = (2 * torch.randn(512, 4096)).to(torch.bfloat16)
    exact = critic.weight.double().square().sum().item() / 2

    class InDouble(nn.Module):  # only the perturbation is rounded, not the critic's arithmetic
        def forward(self, x: Tensor) -> Tensor:
            return (x.double() @ critic.weight.double().t()).float()

    ours = [penalties.approximate_r1(InDouble(), x, gamma=1.0, sigma=0.01).item() for _ in range(8)]
    perturbed = (x.float() + 0.01 * torch.randn(x.shape)).to(torch.bfloat16)
    naive = 0.5 * ((perturbed.double() - x.double()) @ critic.weight.double().t()).square().mean().item() / 0.01**2
    assert abs(sum(ours) / 8 - exact) < 0.06 * exact
    assert naive > 1.1 * exact


def test_path_length_of_a_linear_generator():
    a = torch.randn(5, 3 * 4 * 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    images = (w @ a).view(2, 3, 4, 4)
    lengths = penalties.path_lengths(images, w, noise=noise)
    torch.testing.assert_close(lengths, (noise.flatten(1) @ a.t() / 4).norm(dim=1))
    regulariser = penalties.PathLength(weight=3.0, decay=0.5)
    loss = regulariser((w @ a).view(2, 3, 4, 4), w, noise=noise)
    mean = 0.5 * lengths.mean()
    torch.testing.assert_close(loss, 3 * (lengths - mean.detach().float()).square().mean(), rtol=1e-5, atol=1e-6)
    loss.backward()
    assert a.grad.abs().sum() > 0
    regulariser.eval()
    regulariser((w @ a).view(2, 3, 4, 4), w, noise=noise)
    torch.testing.assert_close(regulariser.mean.double(), mean.detach(), rtol=1e-5, atol=1e-6)
    per_layer = w[:, None].expand(-1, 3, -1).clone().requires_grad_()
    torch.testing.assert_close(
        penalties.path_lengths((per_layer.mean(1) @ a).view(2, 3, 4, 4), per_layer, noise=noise),
        (noise.flatten(1) @ a.t() / 12).norm(dim=1),
    )


def test_lazy_schedule(critic, real):
    lazy = penalties.Lazy(penalties.r1, every=4)
    taken = [step for step in range(10) if lazy(step, critic, real, gamma=2.0) is not None]
    assert taken == [0, 4, 8]
    torch.testing.assert_close(lazy(4, critic, real, gamma=2.0), 4 * penalties.r1(critic, real, gamma=2.0))
    assert penalties.lazy_adam(0.002, (0.0, 0.99), every=16) == {
        "lr": pytest.approx(0.002 * 16 / 17),
        "betas": (0.0, pytest.approx(0.99 ** (16 / 17))),
    }


MODULES = {
    "R1": ("real",), "R2": ("fake",), "R1R2": ("real", "fake"), "WGANGP": ("real", "fake"), "WGANLP": ("real", "fake"),
    "DRAGAN": ("real",), "ZeroCentered": ("real", "fake"), "MaxGP": ("real", "fake"), "ApproximateR1": ("real",),
    "ApproximateR2": ("fake",),
}  # fmt: skip


@pytest.mark.parametrize(("name", "names"), MODULES.items(), ids=MODULES)
def test_modules_are_the_functions(name, names, critic, real, fake):
    module = getattr(penalties, name)()
    samples = [{"real": real, "fake": fake}[n] for n in names]
    torch.manual_seed(1)
    ours = module(critic, *samples)
    torch.manual_seed(1)
    torch.testing.assert_close(ours, type(module).function(critic, *samples))
    assert not list(module.parameters())
    with pytest.raises(TypeError, match="strength"):
        getattr(penalties, name)(strength=2.0)


def test_batch_normalisation_is_warned_of_once(real):
    critic = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1)).double()
    with pytest.warns(UserWarning, match="batch normalisation in training"):
        penalties.r1(critic, real)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        penalties.r1(critic, real)


def test_empty_batches(critic):
    empty = torch.zeros(0, 3, 8, 8, dtype=torch.float64)
    assert penalties.r1(critic, empty).item() == 0
    assert penalties.r1_r2(critic, empty, empty).item() == 0


BAD = {
    "negative gamma": (lambda c, x: penalties.r1(c, x, gamma=-1.0), ValueError, ("gamma", "-1.0")),
    "gamma in words": (lambda c, x: penalties.r2(c, x, gamma="10"), TypeError, ("gamma", "str")),
    "shapes": (lambda c, x: penalties.wgan_gp(c, x, x[:2]), ValueError, ("fake", "(2, 3, 8, 8)", "(4, 3, 8, 8)")),
    "dtypes": (lambda c, x: penalties.r1_r2(c, x, x.float()), TypeError, ("fake", "float32", "float64")),
    "integers": (lambda c, x: penalties.dragan(c, x.long()), TypeError, ("real", "int64")),
    "sigma": (lambda c, x: penalties.approximate_r1(c, x, sigma=0.0), ValueError, ("sigma", "> 0")),
    "several values": (lambda c, x: penalties.approximate_r1(c[:4], x), ValueError, ("critic", "4 samples")),
    "no largest": (lambda c, x: penalties.max_gp(c, x[:0], x[:0]), ValueError, ("real", "empty")),
    "every": (lambda c, x: penalties.Lazy(penalties.r1, 0), ValueError, ("every", "0")),
    "half an every": (lambda c, x: penalties.lazy_adam(1.0, every=1.5), TypeError, ("every", "float")),
    "no way back": (lambda c, x: penalties.path_lengths(x, torch.zeros(4, 2)), ValueError, ("latents", "no gradient")),
    "decay": (lambda c, x: penalties.PathLength(decay=0.0), ValueError, ("decay", "0.0")),
}


@pytest.mark.parametrize(("call", "error", "mentions"), BAD.values(), ids=BAD)
def test_bad_calls(call, error, mentions, critic, real):
    with pytest.raises(error) as raised:
        call(critic, real)
    assert all(m in str(raised.value) for m in mentions)
