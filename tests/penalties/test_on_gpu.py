"""Critic steps on a GPU: the CPU's gradients, in float32 and bfloat16, and a whole step in a CUDA graph."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from genmod import penalties

from .critics import PIECEWISE_LINEAR

pytestmark = pytest.mark.gpu
PENALTIES = ("r1", "r1+r2", "wgan-gp")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pair(dtype: torch.dtype, device: str = "cuda") -> tuple[Tensor, Tensor]:
    real, fake = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8) + 0.5
    return real.to(device, dtype), fake.to(device, dtype)


def gradients(critic: nn.Module, real: Tensor, fake: Tensor, penalty: str, engine: str) -> list[Tensor | None]:
    critic.zero_grad()
    # What is drawn between the samples follows from the seed, on either device the same for one penalty.
    generator = torch.Generator(real.device).manual_seed(0)
    penalties.critic_step(critic, real, fake, penalty=penalty, gamma=3.0, engine=engine, generator=generator)
    return [None if p.grad is None else p.grad.clone() for p in critic.parameters()]


def compare(found: list[Tensor | None], expected: list[Tensor | None], tolerance: float) -> None:
    largest = max(e.norm().item() for e in expected if e is not None)
    for f, e in zip(found, expected, strict=True):
        if e is None or f is None:
            assert all(t is None or not t.any() for t in (f, e))
        else:
            assert (f.double() - e.double()).norm().item() <= tolerance * (e.norm().item() + 1e-2 * largest)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("make", PIECEWISE_LINEAR.values(), ids=PIECEWISE_LINEAR)
def test_shared_gradients_are_those_of_autograd(make, penalty):
    made = make()
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        critic, samples = copy.deepcopy(made).to("cuda", dtype), pair(dtype)
        # Spectral norm moves at each call, so each engine gets a critic of its own.
        expected = gradients(copy.deepcopy(critic), *samples, penalty, "autograd")
        compare(gradients(critic, *samples, penalty, "shared"), expected, tolerance)


@pytest.mark.parametrize("penalty", ["r1", "r1+r2"])
def test_a_step_in_a_cuda_graph(penalty):
    """Nothing of the step waits for the device, so it can be captured whole, and replayed on new samples."""
    critic = nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(128, 1), nn.Flatten(0),
    ).cuda()  # fmt: skip
    real, fake = pair(torch.float32)

    def step() -> penalties.CriticStep:
        for p in critic.parameters():
            if p.grad is not None:
                p.grad.zero_()
        return penalties.critic_step(critic, real, fake, penalty=penalty, gamma=3.0, engine="shared")

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for tensor, fresh in zip((real, fake), pair(torch.float32), strict=True):
        tensor.copy_(fresh)
    graph.replay()
    found = [p.grad.clone() for p in critic.parameters()]
    values = captured.loss.item(), captured.penalty.item()
    again = step()
    compare(found, [p.grad for p in critic.parameters()], 1e-5)
    assert values == pytest.approx((again.loss.item(), again.penalty.item()), rel=1e-5)
