"""A critic's whole step: the gradients it leaves behind, what it returns, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmod import penalties
from genmod.ops import _convolution
from genmod.ops.critic_conv import critic_conv2d
from genmod.penalties import faster

from .critics import OTHERS, PIECEWISE_LINEAR, dcgan
from .test_penalties import FORMULAS

PENALTIES = {"r1": "r1", "r2": "r2", "r1+r2": "r1_r2", "wgan-gp": "wgan_gp", "zero-centered": "zero_centered"}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pair(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(4, 3, 8, 8, dtype=dtype), torch.randn(4, 3, 8, 8, dtype=dtype) + 0.5


def non_saturating(*, real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def relativistic(*, real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(fake - real).mean()


def by_hand(critic: nn.Module, real: Tensor, fake: Tensor, loss, penalty: Tensor) -> list[Tensor | None]:
    values = critic(torch.cat((real, fake))).flatten()
    total = loss(real=values[:4], fake=values[4:]) + penalty
    return list(torch.autograd.grad(total, list(critic.parameters()), allow_unused=True))


def assert_grads(critic: nn.Module, expected: list[Tensor | None], tolerance: float = 1e-10) -> None:
    for p, e in zip((p for p in critic.parameters() if p.requires_grad), expected):
        if e is None or not e.any():
            assert p.grad is None or not p.grad.any()
        else:
            assert ((p.grad - e).abs().max() / e.abs().max()).item() <= tolerance


@pytest.mark.parametrize("engine", ["auto", "autograd"])
@pytest.mark.parametrize("name", PENALTIES)
def test_gradients(name, engine):
    critic, (real, fake) = dcgan().double(), pair()
    formula = FORMULAS[PENALTIES[name]][1]
    weight = {"wgan-gp": 5.0}.get(name, 3.0)
    penalty = formula(critic, real, fake)
    expected = by_hand(critic, real, fake, non_saturating, penalty)
    generator = torch.Generator().manual_seed(7)
    step = penalties.critic_step(
        critic, real, fake, loss=non_saturating, penalty=name, gamma=weight, engine=engine, generator=generator
    )
    assert_grads(critic, expected)
    torch.testing.assert_close(step.penalty, penalty.detach())
    torch.testing.assert_close(step.real, critic(real).detach().flatten())
    torch.testing.assert_close(step.loss, non_saturating(real=step.real, fake=step.fake))
    assert not any(t.requires_grad for t in step)


@pytest.mark.parametrize("make", [*PIECEWISE_LINEAR.values(), *OTHERS.values()], ids=[*PIECEWISE_LINEAR, *OTHERS])
@pytest.mark.filterwarnings("ignore:.*by autograd")
def test_every_critic_gets_autograds_gradients(make):
    critic, (real, fake) = make().double(), pair()
    other = copy.deepcopy(critic)
    both = torch.cat((real, fake)).requires_grad_()
    values = other(both).flatten()
    (g,) = torch.autograd.grad(values.sum(), both, create_graph=True)
    total = relativistic(real=values[:4], fake=values[4:]) + 2 * g.square().sum() / 4
    parameters = [p for p in other.parameters() if p.requires_grad]
    expected = torch.autograd.grad(total, parameters, allow_unused=True)
    penalties.critic_step(critic, real, fake, loss=relativistic, penalty="r1+r2", gamma=4.0)
    assert_grads(critic, list(expected))


def test_gradients_are_added_to():
    critic, (real, fake) = dcgan().double(), pair()
    penalties.critic_step(critic, real, fake, loss=non_saturating)
    once = [p.grad.clone() for p in critic.parameters()]
    penalties.critic_step(critic, real, fake, loss=non_saturating)
    for p, g in zip(critic.parameters(), once):
        torch.testing.assert_close(p.grad, 2 * g)


def test_samples_get_no_gradient():
    critic, (real, fake) = dcgan().double(), pair()
    fake.requires_grad_()
    penalties.critic_step(critic, real, fake * 1, loss=non_saturating)
    assert fake.grad is None


@pytest.mark.parametrize("kind", ["non_saturating", "hinge", "least_squares", "wasserstein", "relativistic"])
def test_named_losses(kind):
    critic, (real, fake) = dcgan().double(), pair()
    step = penalties.critic_step(critic, real, fake, loss=kind, penalty="none")
    assert step.penalty == 0
    assert step.loss.isfinite()
    assert any(p.grad is not None and p.grad.any() for p in critic.parameters())


def test_a_scaler_scales_gradients_and_nothing_else():
    real, fake = pair(torch.float32)
    critics = [dcgan() for _ in range(2)]
    critics[1].load_state_dict(critics[0].state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    steps = [
        penalties.critic_step(c, real, fake, loss=non_saturating, scaler=s) for c, s in zip(critics, (None, scaler))
    ]
    torch.testing.assert_close(steps[0].penalty, steps[1].penalty)
    for a, b in zip(critics[0].parameters(), critics[1].parameters()):
        torch.testing.assert_close(128 * a.grad, b.grad)


BAD = {
    "shapes": (lambda c, r, f: penalties.critic_step(c, r, f[:2]), ValueError, ("fake", "(2, 3, 8, 8)")),
    "penalty": (lambda c, r, f: penalties.critic_step(c, r, f, penalty="r3"), ValueError, ("penalty", "r3", "r1+r2")),
    "gamma": (lambda c, r, f: penalties.critic_step(c, r, f, gamma=-2.0), ValueError, ("gamma", "-2.0")),
    "values": (lambda c, r, f: penalties.critic_step(c[:4], r, f), ValueError, ("critic", "samples")),
    "others' values": (lambda c, r, f: penalties.critic_step(c[:4], r, f, penalty="none"), ValueError, ("critic",)),
    "engine": (
        lambda c, r, f: penalties.critic_step(OTHERS["smooth"]().double(), r, f, engine="shared"),
        RuntimeError,
        ("engine", "shared", "silu"),
    ),
}


@pytest.mark.parametrize(("call", "error", "mentions"), BAD.values(), ids=BAD)
def test_bad_calls_leave_gradients_alone(call, error, mentions):
    critic, (real, fake) = dcgan().double(), pair()
    for p in critic.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(error) as raised:
        call(critic, real, fake)
    assert all(m in str(raised.value) for m in mentions)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in critic.parameters())


class Flattens(nn.Module):
    """Wide enough for the matrix product, and with a `view` that images in channels_last do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 128, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(128, 136, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)
        )
        self.end = nn.Linear(136 * 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.end(x.view(x.shape[0], -1))


@pytest.mark.parametrize("penalty", ["wgan-gp", "r1", "r2"])
def test_samples_without_a_penalty_take_the_product_once_the_critic_is_known(penalty, monkeypatch):
    critic = Flattens()
    real, fake = torch.randn(48, 3, 16, 16), torch.randn(48, 3, 16, 16) + 0.5  # more than what is too small
    taken = []

    def counted(*args, **kwargs):
        taken.append(args[1].shape)
        return critic_conv2d(*args, **kwargs)

    monkeypatch.setattr(faster, "critic_conv2d", counted)
    monkeypatch.setattr(_convolution, "is_amd", lambda: False)  # where products are not for this critic
    found = {}
    for engine in ("autograd", "auto"):
        critic.zero_grad()
        generator = torch.Generator().manual_seed(7)
        step = penalties.critic_step(critic, real, fake, penalty=penalty, engine=engine, generator=generator)
        found[engine] = ([p.grad.double() for p in critic.parameters()], step)
        assert taken == ([] if engine == "autograd" else [critic.body[2].weight.shape])
    scale = max(g.abs().max() for g in found["autograd"][0])  # the last bias's is a difference of nearly equal sums
    for mine, theirs in zip(found["auto"][0], found["autograd"][0], strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * scale
    for name in ("loss", "penalty", "real", "fake"):
        torch.testing.assert_close(*(getattr(found[engine][1], name) for engine in found))


@pytest.mark.filterwarnings("ignore:.*by autograd")
def test_critics_that_the_engine_refuses_are_called_as_they_are(monkeypatch):
    seen = []

    class Smooth(Flattens):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.is_contiguous())
            return super().forward(F.silu(x))

    monkeypatch.setattr(faster, "critic_conv2d", None)
    penalties.critic_step(Smooth(), *torch.randn(2, 48, 3, 16, 16), penalty="wgan-gp")
    assert seen[-1]
