"""A critic's training step with a gradient penalty: autograd, torch.compile of torch.func.grad, genmod."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmod import nn as gnn
from genmod import penalties
from genmod.bench.step import Contenders, Step, agree
from genmod.penalties.step import PenaltyName

GAMMA = 10.0


Conv = type[nn.Conv2d]
Activation = Callable[[float], nn.Module]
Build = Callable[[Conv, Activation], nn.Module]


def dcgan64(conv: Conv = nn.Conv2d, activation: Activation = nn.LeakyReLU) -> nn.Module:
    """The critic of DCGAN at 64 x 64 (Radford et al. 2016), without the batch norm that a penalty does not allow."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 64), (64, 128), (128, 256), (256, 512)):
        layers += [conv(inputs, outputs, 4, 2, 1), activation(0.2)]
    return nn.Sequential(*layers, conv(512, 1, 4), nn.Flatten(0))


class _Residual(nn.Module):
    """`(branch(x) + shortcut(x)) · gain`."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, gain: float = 1.0) -> None:
        super().__init__()
        self.branch, self.shortcut, self.gain = branch, shortcut, gain

    def forward(self, x: Tensor) -> Tensor:
        return (self.branch(x) + self.shortcut(x)) * self.gain


def stylegan2(conv: Conv, activation: Activation, *, size: int = 64, width: int = 64) -> nn.Module:
    """Residual, with blurred downsampling and minibatch standard deviation, as StyleGAN2's (Karras et al. 2020).

    Its weights are not equalised: that scales them once a call, and is the same work for every contender.
    """
    layers: list[nn.Module] = [conv(3, width, 1), activation(0.2)]
    inputs = width
    while size > 4:
        outputs, size = min(2 * inputs, 4 * width), size // 2
        branch = nn.Sequential(
            conv(inputs, inputs, 3, 1, 1), activation(0.2),
            gnn.BlurDownsample(), conv(inputs, outputs, 3, 1, 1), activation(0.2),
        )  # fmt: skip
        shortcut = nn.Sequential(gnn.BlurDownsample(), conv(inputs, outputs, 1, bias=False))
        layers.append(_Residual(branch, shortcut, 0.5**0.5))
        inputs = outputs
    layers += [gnn.MinibatchStdDev(), conv(inputs + 1, inputs, 3, 1, 1), activation(0.2)]
    return nn.Sequential(*layers, conv(inputs, 1, 4), nn.Flatten(0))


def r3gan(conv: Conv, activation: Activation, *, size: int = 64, width: int = 64) -> nn.Module:
    """Residual blocks of 1x1, grouped 3x3 and 1x1 convolutions without norms, as R3GAN's critic (Huang et al. 2024)."""
    layers: list[nn.Module] = [conv(3, width, 1)]
    inputs = width
    while True:
        for _ in range(2):
            inner = 2 * inputs
            branch = nn.Sequential(
                conv(inputs, inner, 1), activation(0.2),
                conv(inner, inner, 3, 1, 1, groups=max(1, inner // 16)), activation(0.2),
                conv(inner, inputs, 1, bias=False),
            )  # fmt: skip
            layers.append(_Residual(branch, nn.Identity()))
        if size <= 4:
            break
        outputs, size = min(2 * inputs, 4 * width), size // 2
        layers += [gnn.BlurDownsample(), conv(inputs, outputs, 1, bias=False)]
        inputs = outputs
    return nn.Sequential(
        *layers, conv(inputs, inputs, 4, groups=inputs), nn.Flatten(), nn.Linear(inputs, 1), nn.Flatten(0)
    )


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
            values, pull_back = torch.func.vjp(call, x)[:2]
            (gradient,) = pull_back(torch.ones_like(values))
            return values, gradient.square().sum((1, 2, 3))

        return objective(call, square_norms, *samples)

    step = torch.compile(torch.func.grad(loss))
    return lambda: step(parameters, *samples)


@dataclass(frozen=True)
class _Race:
    """One penalty on one critic.

    Attributes:
        objective: `(critic, square_norms, real, fake)` to the whole loss, as people write it.
        ours: takes a step of the same loss.
        build: the critic.
        size: of its images.
        engine: "shared" where the critic is piecewise linear, so that genmod serves it as it is; "layers" where it
            needs genmod's layers to gain; "both" to show the two.
    """

    objective: Callable[..., Tensor]
    ours: Callable[[nn.Module, Tensor, Tensor], object]
    build: Build = dcgan64
    size: int = 64
    engine: str = "shared"

    def contenders(self, batch: int, device: torch.device, dtype: torch.dtype) -> Contenders:
        critic = self.build(nn.Conv2d, nn.LeakyReLU).to(device, dtype)
        real, fake = (torch.randn(batch, 3, self.size, self.size, device=device, dtype=dtype) for _ in range(2))
        contenders = {
            "eager": self._eager(critic, real, fake),
            "compile": _compiled(critic, self.objective, real, fake),
        }
        if self.engine != "layers":
            contenders["genmod"] = self._genmod(critic, real, fake)
            agree(critic, contenders["eager"], critic, contenders["genmod"])
        if self.engine != "shared":
            native = self.build(gnn.CriticConv2d, gnn.CriticLeakyReLU).to(device, dtype)
            native.load_state_dict(critic.state_dict())
            name = "genmod:layers" if self.engine == "both" else "genmod"
            contenders[name] = self._genmod(native, real, fake)
            agree(critic, contenders["eager"], native, contenders[name])
        return contenders

    def _eager(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Callable[[], None]:
        def step() -> None:
            critic.zero_grad()
            self.objective(critic, lambda x: _square_norms(critic, x), real, fake).backward()

        return step

    def _genmod(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Callable[[], None]:
        def step() -> None:
            critic.zero_grad()
            self.ours(critic, real, fake)

        return step


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


def _r3gan_step(critic, square_norms, real, fake):
    real_values, real_norms = square_norms(real)
    fake_values, fake_norms = square_norms(fake)
    return F.softplus(fake_values - real_values).mean() + GAMMA / 2 * (real_norms.mean() + fake_norms.mean())


def _our_step(penalty: PenaltyName, **options: Any) -> Callable[[nn.Module, Tensor, Tensor], object]:
    return lambda critic, real, fake: penalties.critic_step(critic, real, fake, penalty=penalty, gamma=GAMMA, **options)


def _tiny(build: Callable[..., nn.Module]) -> Build:
    return lambda conv, activation: build(conv, activation, size=16, width=8)


def _step(name: str, race: _Race, critic: str = "DCGAN-64 critic", batch: int = 32, small: _Race | None = None) -> Step:
    return Step(
        "critic_step",
        f"{critic} [{batch}, 3, 64, 64], {name}",
        lambda device, dtype: race.contenders(batch, device, dtype),
        lambda device, dtype: (small or race).contenders(2, device, dtype),
    )


_R1_ALONE = _Race(_r1, lambda c, real, fake: penalties.r1(c, real, gamma=GAMMA).backward(), engine="both")
_STYLEGAN2 = _Race(_r1_step, _our_step("r1", engine="autograd"), stylegan2, engine="layers")
_R3GAN = _Race(_r3gan_step, _our_step("r1+r2", loss="relativistic"), r3gan, engine="both")

_R3GAN_256 = replace(_R3GAN, build=lambda conv, activation: r3gan(conv, activation, size=256), size=256)


def _without_compile(contenders: Contenders) -> Contenders:
    """torch.compile takes minutes for so deep a critic differentiated twice."""
    return {name: call for name, call in contenders.items() if name != "compile"}


STEPS = (
    Step(
        "critic_step",
        "R3GAN critic [16, 3, 256, 256], relativistic, R1 + R2",
        lambda device, dtype: _without_compile(_R3GAN_256.contenders(16, device, dtype)),
        lambda device, dtype: replace(_R3GAN, build=_tiny(r3gan), size=16).contenders(2, device, dtype),
        gpu=True,
    ),
    _step("R1 alone", _R1_ALONE),
    _step("R1", _Race(_r1_step, _our_step("r1"))),
    _step("R1 + R2", _Race(_r1_r2_step, _our_step("r1+r2"))),
    replace(_step("R1 + R2", _Race(_r1_r2_step, _our_step("r1+r2")), batch=64), gpu=True),
    _step("WGAN-GP", _Race(_wgan_gp_step, _our_wgan_gp_step)),
    _step("R1", _STYLEGAN2, "StyleGAN2-style critic", 16, replace(_STYLEGAN2, build=_tiny(stylegan2), size=16)),
    _step("relativistic, R1 + R2", _R3GAN, "R3GAN critic", 16, replace(_R3GAN, build=_tiny(r3gan), size=16)),
)
