"""A WGAN-GP on the two-dimensional eight Gaussians, trained with genmod's penalty, finds all modes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from genmod import penalties


def eight_gaussians(count: int) -> Tensor:
    angles = torch.randint(8, (count,)) * (math.pi / 4)
    return torch.stack((angles.cos(), angles.sin()), 1) * 2 + 0.05 * torch.randn(count, 2)


def network(inputs: int, outputs: int, width: int = 64) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2),
        nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, outputs),
    )  # fmt: skip


@pytest.mark.slow
def test_wgan_gp_finds_all_modes():
    torch.manual_seed(0)
    generator, critic = network(8, 2), network(2, 1)
    for_generator = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.0, 0.9))
    for_critic = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.0, 0.9))
    for _ in range(900):
        for _ in range(4):
            with torch.no_grad():
                fake = generator(torch.randn(128, 8))
            for_critic.zero_grad(set_to_none=True)
            penalties.critic_step(
                critic, eight_gaussians(128), fake, loss="wasserstein", penalty="wgan-gp", gamma=0.1, engine="autograd"
            )
            for_critic.step()
        for_generator.zero_grad(set_to_none=True)
        (-critic(generator(torch.randn(128, 8))).mean()).backward()
        for_generator.step()
    with torch.no_grad():
        samples = generator(torch.randn(4000, 8))
    angles = torch.arange(8) * (math.pi / 4)
    centres = torch.stack((angles.cos(), angles.sin()), 1) * 2
    distance, nearest = torch.cdist(samples, centres).min(1)
    shares = torch.bincount(nearest, minlength=8) / len(samples)
    # Eight modes of 12.5 % each; a collapsed generator leaves several of them empty.
    assert shares.min() > 0.06, shares
    # A point thrown anywhere on the disc is that close to a mode one time in seven.
    assert (distance < 0.3).float().mean() > 0.28
