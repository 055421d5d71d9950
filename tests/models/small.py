"""Models small enough for tests, and what every family is asked."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from genmod.models import Model

SMALL: dict[str, Any] = {"image_size": 8, "channels": 1, "latent_dim": 3, "width": 4, "stages": 2}


def images(n: int = 6, channels: int = 1, size: int = 8, seed: int = 0) -> Tensor:
    """Smooth random images in [0, 1]."""
    coarse = torch.rand(n, channels, size // 4, size // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")


def gradients(model: Model) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def backward(model: Model, phase: str, x: Tensor, *, scale: float = 1.0, step: int = 3) -> dict[str, Tensor | None]:
    """The gradients of one phase of a copy of the model, from draws of seed 0."""
    model = copy.deepcopy(model)
    draws = model.draw(phase, len(x), torch.Generator().manual_seed(0))
    model.backward(phase, x, draws, step=step, scale=scale)
    return gradients(model)


def check_phases(model: Model, x: Tensor) -> None:
    """Each phase fills the gradients of its parameters and of no others, in proportion to `scale`, and adds to them."""
    model, x = model.double(), x.double()
    for phase in model.phases:
        own = {id(p) for p in model.phase_parameters(phase)}
        names = {name for name, p in model.named_parameters() if id(p) in own}
        once, thrice = backward(model, phase, x), backward(model, phase, x, scale=3.0)
        assert {name for name, grad in once.items() if grad is not None} == names
        for name in names:
            torch.testing.assert_close(thrice[name], 3 * once[name], rtol=1e-6, atol=1e-9)
        twice = copy.deepcopy(model)
        for _ in range(2):
            twice.backward(phase, x, model.draw(phase, len(x), torch.Generator().manual_seed(0)), step=3)
        for name, grad in gradients(twice).items():
            if name in names:
                torch.testing.assert_close(grad, 2 * once[name], rtol=1e-6, atol=1e-9)


def check_draws(model: Model) -> None:
    """Draws have a row per sample, follow the generator and leave torch's own alone."""
    state = torch.get_rng_state()
    for phase in model.phases:
        first, again, other = (model.draw(phase, 5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        assert first.keys() == again.keys()
        for name, tensor in first.items():
            assert len(tensor) == 5
            assert torch.equal(tensor, again[name])
            assert not torch.equal(tensor, other[name])
    assert torch.equal(torch.get_rng_state(), state)


def train(model: Model, x: Tensor, steps: int, rate: float = 3e-3) -> tuple[float, float]:
    """The loss of the last phase in the first and in the last step on one batch."""
    optimizers = {
        p: torch.optim.Adam(model.phase_parameters(p), rate, (0.5, 0.99)) for p in dict.fromkeys(model.phases)
    }
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(steps):
        for phase, optimizer in optimizers.items():
            optimizer.zero_grad()
            result = model.backward(phase, x, model.draw(phase, len(x), generator), step=step)
            optimizer.step()
        losses.append(result.loss.item())
    return losses[0], losses[-1]
