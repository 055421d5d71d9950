"""Recipes and pretext tasks on a GPU: what they compute on a CPU, trained, resumed and drawn by the same commands."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from genmod import latent, models
from genmod.cli import main
from genmod.models import GAN, Model
from genmod.pretext import tasks
from genmod.recipes import presets, pretext, trainer
from genmod.recipes.checkpoint import model_folder
from genmod.recipes.data import ImageSet

pytestmark = pytest.mark.gpu
GPU = "cuda"
NAMES = [*presets.RECIPES, *tasks()]
IMAGES = ImageSet("smooth", torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0)), 4)


@pytest.fixture(autouse=True)
def whole_products() -> Iterator[None]:
    """Products of float32 in float32: a GPU's TF32 keeps ten bits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def made(name: str) -> tuple[Model, torch.Tensor]:
    """The model of a recipe or task, small, and what it trains on."""
    torch.manual_seed(0)
    if name in presets.RECIPES:
        return presets.build(name, IMAGES, width=8, latent_dim=6), IMAGES.train
    samples = pretext.samples(name, IMAGES.train, 0)
    return pretext.build(name, samples).train(), samples


def gradients(model: Model, phase: str, x: torch.Tensor, draws: dict[str, torch.Tensor]) -> tuple[Any, ...]:
    losses = model.backward(phase, x, draws, step=3)
    parts = {name: float(part) for name, part in losses.parts.items()}
    return parts, [p.grad.cpu() for p in model.phase_parameters(phase) if p.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_those_of_the_cpu(name: str, dtype: torch.dtype) -> None:
    model, samples = made(name)
    x = samples[:8]
    exact = dtype == torch.float64
    for phase in dict.fromkeys(model.phases):
        draws = model.draw(phase, len(x), torch.Generator().manual_seed(0))
        found = []
        for device in ("cpu", GPU):
            own = {n: t.to(device, dtype if t.is_floating_point() else None) for n, t in draws.items()}
            found.append(gradients(copy.deepcopy(model).to(device, dtype), phase, x.to(device, dtype), own))
        (parts, grads), (gpu_parts, gpu_grads) = found
        assert gpu_parts == pytest.approx(parts, rel=1e-6 if exact else 1e-3, abs=1e-6 if exact else 1e-4)
        assert len(grads) == len(gpu_grads) > 0
        largest = max(float(grad.norm()) for grad in grads)
        for ours, theirs in zip(gpu_grads, grads, strict=True):
            # In the large: an activation that rounding moves across a kink changes a whole pixel's gradient.
            bound = (1e-6 if exact else 2e-2) * float(theirs.norm()) + (1e-7 if exact else 1e-4) * largest
            assert float((ours - theirs).norm()) <= bound


@pytest.mark.parametrize("name", NAMES)
def test_training_and_resuming(name: str, tmp_path: Path) -> None:
    def run(steps: int, out: Path, resume: bool = False) -> trainer.Result:
        model, samples = made(name)
        config = presets.training(name, IMAGES, steps=steps, batch=8, log_every=3, ema=0.9)
        return trainer.train(model, samples, config, out=out, resume=resume, device=GPU, log=False)

    straight = run(8, tmp_path / "straight")
    assert next(straight.model.parameters()).device.type == GPU
    run(5, tmp_path / "halves")
    again = run(8, tmp_path / "halves", resume=True)
    for phase, losses in straight.curve.items():
        # Some kernels of a GPU add up in an order of their own each time, and Adam makes steps of it.
        assert again.curve[phase] == pytest.approx(losses, rel=1e-2, abs=1e-3)
    saved = models.load(model_folder(tmp_path / "halves"))
    for ours, theirs in zip(saved.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs.cpu())


@pytest.mark.parametrize("recipe", ["ae", "vae", "wae", "iwae", "dcgan", "r3gan"])
def test_a_seed_draws_the_same_images_as_on_the_cpu(recipe: str) -> None:
    model, _ = made(recipe)
    model.eval()
    on_gpu = copy.deepcopy(model).to(GPU)
    for make in (
        lambda m: m.sample(4, torch.Generator().manual_seed(1)),
        lambda m: latent.decode(m, torch.linspace(-1, 1, 12).view(2, 6)),
        *([] if isinstance(model, GAN) else [lambda m: latent.encode(m, IMAGES.test)]),
    ):
        torch.testing.assert_close(make(on_gpu).cpu(), make(model), rtol=1e-3, atol=1e-4)


def test_bf16_trains_close_to_float32() -> None:
    curves = []
    for precision in ("no", "bf16"):
        model, samples = made("vae")
        config = presets.training("vae", IMAGES, steps=6, batch=8, precision=precision)
        curves.append(trainer.train(model, samples, config, device=GPU, log=False).curve["model"])
    assert curves[0] != curves[1]
    assert curves[1] == pytest.approx(curves[0], rel=5e-2)


def test_the_device_that_is_asked_for_is_taken_after_another() -> None:
    for device in ("cpu", GPU, "cpu"):
        model, samples = made("ae")
        result = trainer.train(
            model, samples, presets.training("ae", IMAGES, steps=2, batch=8), device=device, log=False
        )
        assert next(result.model.parameters()).device.type == device


def test_the_commands(tmp_path: Path) -> None:
    out = tmp_path / "vae"
    train = ["train", "vae", "--device", "cuda", "--batch", "16", "--out", str(out)]
    assert main([*train, "--steps", "20"]) == 0
    assert main([*train, "--steps", "30", "--resume"]) == 0
    assert json.loads((out / "metrics.json").read_text())["measured"]["fid"] > 0
    for command in ("sample", "reconstruct", "traverse", "interpolate", "map"):
        assert main([command, str(out), "--out", str(tmp_path / f"{command}.png")]) == 0
    assert main(["pretext", "rotation", "--device", "cuda", "--steps", "5", "--out", str(tmp_path / "rotation")]) == 0
    assert main(["probe", str(tmp_path / "rotation")]) == 0
