"""A critic's training step with a gradient penalty: autograd, torch.compile of torch.func.grad, genmod."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.steps import Contenders, Step
from genmod import nn as gnn
from genmod import penalties

GAMMA = 10.0


def dcgan64(conv: type[nn.Conv2d] = nn.Conv2d, activation: Callable[[float], nn.Module] = nn.LeakyReLU) -> nn.Module:
    """The critic of DCGAN at 64 x 64 (Radford et al. 2016), without the batch norm that a penalty does not allow."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 64), (64, 128), (128, 256), (256, 512)):
        layers += [conv(inputs, outputs, 4, 2, 1), activation(0.2)]
    return nn.Sequential(*layers, conv(512, 1, 4), nn.Flatten(0))


def _samples(batch: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return tuple(torch.randn(batch, 3, 64, 64, device=device, dtype=dtype) for _ in range(2))


def _square_norms(critic: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    values = critic(x)
    (gradient,) = torch.autograd.grad(values.sum(), x, create_graph=True)
    return values, gradient.square().sum((1, 2, 3))


def _compiled(critic: nn.Module, objective: Callable[..., Tensor], *samples: Tensor) -> Callable[[], object]:
    """torch.compile refuses a backward of a backward, but takes torch.func.grad of a torch.func.grad."""
    parameters = {name: p.detach() for name, p in critic.named_parameters()}

    def loss(parameters: dict[str, Tensor], *samples: Tensor) -> Tensor:
        def call(x: Tensor) -> Tensor:
            return torch.func.functional_call(critic, parameters, (x,))

        def square_norms(x: Tensor) -> tuple[Tensor, Tensor]:
            values, pull_back = torch.func.vjp(call, x)
            (gradient,) = pull_back(torch.ones_like(values))
            return values, gradient.square().sum((1, 2, 3))

        return objective(call, square_norms, *samples)

    step = torch.compile(torch.func.grad(loss))
    return lambda: step(parameters, *samples)


def _contenders(
    device: torch.device,
    dtype: torch.dtype,
    batch: int,
    objective: Callable[..., Tensor],
    ours: Callable[[nn.Module, Tensor, Tensor], object],
    layers: bool = False,
) -> Contenders:
    """`objective(critic, square_norms, real, fake)` is the whole loss; `ours` takes a step of the same one."""
    critic = dcgan64().to(device, dtype)
    real, fake = _samples(batch, device, dtype)
    parameters = list(critic.parameters())

    def clear(critic: nn.Module) -> None:
        for p in critic.parameters():
            p.grad = None

    def eager() -> None:
        clear(critic)
        objective(critic, lambda x: _square_norms(critic, x), real, fake).backward()

    def genmod(critic: nn.Module) -> Callable[[], None]:
        def step() -> None:
            clear(critic)
            ours(critic, real, fake)

        return step

    contenders = {"eager": eager, "compile": _compiled(critic, objective, real, fake), "genmod": genmod(critic)}
    if layers:
        native = dcgan64(gnn.CriticConv2d, gnn.CriticLeakyReLU).to(device, dtype)
        native.load_state_dict(critic.state_dict())
        contenders["genmod:layers"] = genmod(native)
    _agree(contenders["eager"], contenders["genmod"], parameters)
    return contenders


def _agree(eager: Callable[[], object], ours: Callable[[], object], parameters: list[nn.Parameter]) -> None:
    """No time is reported for a step with other gradients."""
    eager()
    expected = [p.grad for p in parameters]
    ours()
    for p, e in zip(parameters, expected):
        if e is not None and p.grad is not None:
            torch.testing.assert_close(p.grad, e, rtol=1e-3, atol=1e-4 * e.abs().max().item())


def _r1(critic, square_norms, real, fake):
    return GAMMA / 2 * square_norms(real)[1].mean()


def _r1_r2_step(critic, square_norms, real, fake):
    real_values, real_norms = square_norms(real)
    fake_values, fake_norms = square_norms(fake)
    loss = F.softplus(-real_values).mean() + F.softplus(fake_values).mean()
    return loss + GAMMA / 2 * (real_norms.mean() + fake_norms.mean())


def _r1_step(critic, square_norms, real, fake):
    values, norms = square_norms(real)
    return F.softplus(-values).mean() + F.softplus(critic(fake)).mean() + GAMMA / 2 * norms.mean()


def _wgan_gp_step(critic, square_norms, real, fake):
    # The midpoint instead of a random point, so that all contenders see the same one.
    norms = (square_norms((real + fake) / 2)[1] + 1e-12).sqrt()
    return critic(fake).mean() - critic(real).mean() + GAMMA * (norms - 1).square().mean()


def _our_wgan_gp_step(critic: nn.Module, real: Tensor, fake: Tensor) -> None:
    values = critic(torch.cat((real, fake)))
    _, gradients = penalties.value_and_input_gradient(critic, (real + fake) / 2)
    norms = (gradients.square().sum((1, 2, 3)) + 1e-12).sqrt()
    (values[len(real) :].mean() - values[: len(real)].mean() + GAMMA * (norms - 1).square().mean()).backward()


def _step(name: str, objective, ours, batch: int = 32, layers: bool = False) -> Step:
    return Step("critic_step", f"DCGAN-64 critic [{batch}, 3, 64, 64], {name}", lambda device, dtype: _contenders(
        device, dtype, batch, objective, ours, layers
    ))  # fmt: skip


STEPS = (
    _step("R1 alone", _r1, lambda c, real, fake: penalties.r1(c, real, gamma=GAMMA).backward(), layers=True),
    _step("R1", _r1_step, lambda c, real, fake: penalties.critic_step(c, real, fake, penalty="r1", gamma=GAMMA)),
    _step(
        "R1 + R2", _r1_r2_step, lambda c, real, fake: penalties.critic_step(c, real, fake, penalty="r1+r2", gamma=GAMMA)
    ),
    _step("WGAN-GP", _wgan_gp_step, _our_wgan_gp_step),
)
