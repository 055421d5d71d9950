"""Every recipe and every pretext task takes the digits, the photographs and the shapes."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path

import pytest
import torch

from genmod.cli import main
from genmod.models import GAN
from genmod.pretext import tasks
from genmod.recipes import RecipeError, data, presets, pretext, trainer
from genmod.recipes.data import SHIPPED, ImageSet

KEPT = 40  # of a set's images: enough for a few steps


@functools.cache
def few(name: str) -> ImageSet:
    whole = data.load(name)
    images = torch.cat([whole.train[: KEPT - 8], whole.test[:8]])
    labels = None if whole.labels is None else whole.labels[:KEPT]
    return dataclasses.replace(whole, images=images, held_out=8, labels=labels)


@pytest.mark.parametrize("name", list(SHIPPED))
@pytest.mark.parametrize("recipe", list(presets.RECIPES))
def test_every_recipe_takes_every_data_set(recipe: str, name: str) -> None:
    images = few(name)
    torch.manual_seed(0)
    model = presets.build(recipe, images, width=4, latent_dim=4)
    config = presets.training(recipe, images, steps=3, batch=8)
    result = trainer.train(model, images.train, config, device="cpu", log=False)
    assert all(len(losses) == 3 and all(map(math.isfinite, losses)) for losses in result.curve.values())
    drawn = [result.model.sample(5, torch.Generator().manual_seed(0))]
    if not isinstance(model, GAN):
        drawn.append(result.model.reconstruct(images.test[:5]))
    for each in drawn:
        assert each.shape == (5, *images.images.shape[1:])
        assert each.min() >= 0 and each.max() <= 1 and each.std() > 0


@pytest.mark.parametrize("name", list(SHIPPED))
@pytest.mark.parametrize("task", list(tasks()))
def test_every_pretext_task_takes_every_data_set(task: str, name: str) -> None:
    images = few(name)
    samples, test = (pretext.samples(task, part, 0) for part in (images.train, images.test))
    if task == "colorization" and images.images.shape[1] == 1:
        with pytest.raises(RecipeError, match="a grey image has no colours"):
            pretext.build(task, samples)
        return
    torch.manual_seed(0)
    model = pretext.build(task, samples)
    before = [parameter.detach().clone() for parameter in model.encoder.parameters()]
    config = presets.training(task, images, steps=3, batch=8)
    result = trainer.train(model, samples, config, device="cpu", log=False)
    assert all(len(losses) == 3 and all(map(math.isfinite, losses)) for losses in result.curve.values())
    assert not any(torch.equal(a, b) for a, b in zip(before, model.encoder.parameters(), strict=True))
    assert all(map(math.isfinite, result.model.evaluate(test, torch.Generator().manual_seed(0))))
    assert result.model.latents(samples[:2] if samples.dim() == 4 else samples[:2, 0]).shape == (2, model.latent_dim)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("train vae", "shapes"),
        ("train ae", "photos"),
        ("pretext colorization", "photos"),
        ("pretext future", "shapes"),
    ],
)
def test_the_commands_take_them(command: str, name: str, tmp_path: Path) -> None:
    options = ["--data", name, "--steps", "2", "--batch", "4", "--device", "cpu", "--out", str(tmp_path)]
    assert main([*command.split(), *options, *(["--no-metrics"] if "train" in command else [])]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["data"]["name"] == name and found["measured"]
    assert 0 < found["data_share"] < 1
