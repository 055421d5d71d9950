"""Critics under a gradient penalty, StyleGAN2's among them."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genmod
from genmod import penalties

CRITIC = ("exact", "critic")


class EqualizedConv2d(nn.Conv2d):
    """Weights of variance one, scaled at run time: a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        gain = 1 / math.sqrt(self.weight[0].numel())
        return self._conv_forward(input, self.weight * gain, self.bias)


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.act = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv1(self.act(self.conv0(x))))
        return F.avg_pool2d(y + self.skip(x), 2) / math.sqrt(2)


class StyleGAN2Critic(nn.Module):
    """Residual blocks, the deviation over the batch as a channel, and a linear end (Karras et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.from_rgb = nn.Sequential(EqualizedConv2d(3, 8, 1), nn.LeakyReLU(0.2))
        self.blocks = nn.Sequential(Residual(8, 16), Residual(16, 16))
        self.conv = nn.Conv2d(17, 16, 3, padding=1)
        self.act = nn.LeakyReLU(0.2)
        self.end = nn.Sequential(
            nn.Flatten(), nn.Linear(16 * 16, 16), nn.LeakyReLU(0.2, inplace=True), nn.Linear(16, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.from_rgb(x))
        deviation = (y.var(0, correction=0) + 1e-8).sqrt().mean().expand(len(y), 1, *y.shape[2:])
        return self.end(self.act(self.conv(torch.cat((y, deviation), 1))))


def r1(critic: nn.Module, x: Tensor) -> dict[str, Tensor]:
    critic.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    values = critic(x)
    (gradient,) = torch.autograd.grad(values.sum(), x, create_graph=True)
    (F.softplus(-values).mean() + 5 * gradient.square().sum((1, 2, 3)).mean()).backward()
    return {name: p.grad for name, p in critic.named_parameters() if p.grad is not None}


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (mine[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


def test_stylegan2_critic():
    torch.manual_seed(0)
    stock = StyleGAN2Critic()
    ours = copy.deepcopy(stock)
    report = genmod.accelerate(ours, allow=CRITIC)
    found = [swap.pattern for swap in report]
    assert found.count("critic_leaky_relu") >= 4 and found.count("critic_conv2d") == 7
    assert any("EqualizedConv2d" in entry.why for entry in report.left_alone)
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(ours(x), stock(x))
    same(r1(ours, x), r1(stock, x))
    genmod.restore(ours)
    assert torch.equal(ours(x), stock(x))


def test_dcgan_critic_through_penalties():
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32)):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
    stock = nn.Sequential(*layers, nn.Conv2d(32, 1, 8), nn.Flatten(0))
    ours = copy.deepcopy(stock)
    assert {"critic_conv2d", "critic_leaky_relu"} <= {s.pattern for s in genmod.accelerate(ours, allow=CRITIC)}
    real, fake = torch.randn(2, 8, 3, 32, 32)
    for model, engine in ((stock, "autograd"), (ours, "shared")):
        model.zero_grad(set_to_none=True)
        penalties.critic_step(model, real, fake, penalty="r1", gamma=10.0, engine=engine)
    same({n: p.grad for n, p in ours.named_parameters()}, {n: p.grad for n, p in stock.named_parameters()})


def test_critics_are_not_touched_without_the_word():
    model = StyleGAN2Critic()
    report = genmod.accelerate(model)
    assert not any(swap.pattern.startswith("critic") for swap in report)
    assert any('"critic"' in entry.why for entry in report.left_alone)
