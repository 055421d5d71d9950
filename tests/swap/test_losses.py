"""Losses that are modules: PyTorch's, and those of pythae's models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import genmod

from .common import close


@pytest.mark.parametrize("loss", [nn.MSELoss, nn.L1Loss, nn.BCEWithLogitsLoss])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_of_torch(loss: type[nn.Module], reduction: str, dtype: torch.dtype):
    stock = loss(reduction=reduction)
    ours = copy.deepcopy(stock)
    (swap,) = genmod.accelerate(ours)
    assert swap.was == loss.__name__ and isinstance(ours, loss)
    target = torch.rand(64, 3, 32, 32, dtype=dtype)
    x = [torch.randn(64, 3, 32, 32, dtype=dtype, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    values = [model(leaf.requires_grad_(), target) for model, leaf in zip((ours, stock), x, strict=True)]
    close(*values, bound=1e-5)
    for value in values:
        value.backward()
    close(x[0].grad, x[1].grad, 1e-5)


def test_losses_that_are_not_covered():
    for stock in (nn.MSELoss(reduction="none"), nn.BCEWithLogitsLoss(weight=torch.rand(3))):
        assert not genmod.accelerate(stock).swaps
    model = nn.MSELoss()
    genmod.accelerate(model)
    with pytest.warns(UserWarning, match="stock path"):
        found = model(torch.ones(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3, dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16 and found == 1


def pythae_models(kind: str) -> dict[str, Any]:
    models = pytest.importorskip("pythae.models")
    options = {"input_dim": (1, 8, 8), "latent_dim": 4}
    return {
        "AE": lambda: models.AE(models.AEConfig(**options)),
        "VAE": lambda: models.VAE(models.VAEConfig(**options)),
        "VAE bce": lambda: models.VAE(models.VAEConfig(**options, reconstruction_loss="bce")),
        "BetaVAE": lambda: models.BetaVAE(models.BetaVAEConfig(**options, beta=4.0)),
        "BetaTCVAE": lambda: models.BetaTCVAE(models.BetaTCVAEConfig(**options)),
        "WAE_MMD": lambda: models.WAE_MMD(models.WAE_MMD_Config(**options)),
    }[kind]()


@pytest.mark.parametrize("kind", ["AE", "VAE", "VAE bce", "BetaVAE"])
def test_models_of_pythae(kind: str):
    torch.manual_seed(0)
    stock = pythae_models(kind)
    ours = copy.deepcopy(stock)
    report = genmod.accelerate(ours)
    assert any(swap.pattern.startswith("pythae") for swap in report), report
    assert list(ours.state_dict()) == list(stock.state_dict())
    data = {"data": torch.rand(16, 1, 8, 8)}
    gradients = []
    outputs = []
    for model in (ours, stock):
        torch.manual_seed(1)
        outputs.append(model(data))
        outputs[-1].loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for name in outputs[1]:
        close(outputs[0][name], outputs[1][name], what=name)
    for mine, theirs in zip(*gradients, strict=True):
        close(mine, theirs, 1e-3)
    genmod.restore(ours)
    torch.manual_seed(1)
    assert torch.equal(ours(data).loss, outputs[1].loss)


@pytest.mark.parametrize("kind", ["BetaTCVAE", "WAE_MMD"])
def test_models_of_pythae_with_other_losses_say_why(kind: str):
    report = genmod.accelerate(pythae_models(kind))
    assert any(f"{kind} computes is not known" in entry.why for entry in report.left_alone), report
