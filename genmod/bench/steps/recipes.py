"""A training step of every recipe and every pretext task, with its own settings, against the same on stock modules.

Beside it, by the name "genmod:data", what the trainer takes to fetch the step's images and random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod.bench.step import Contenders, Step
from genmod.bench.steps.models import agree, genmod_backward, stock_backward, training_step
from genmod.bench.steps.stock import stock
from genmod.models import Model
from genmod.pretext import Colorization, MissingPatch, PretextModel, tasks
from genmod.recipes import presets, pretext
from genmod.recipes.data import ImageSet
from genmod.recipes.trainer import Trainer

#: What the recipes are timed on: images as large, and as many, as those of the data sets.
DATA = {"digits": (1618, 1, 8), "photos": (6431, 3, 32)}
SMALL_BATCH = 4


def _task_loss(model: PretextModel, output: Tensor, target: Any) -> Tensor:
    """The losses of tasks in torch's words; those that are so in the task itself are taken from there."""
    task = model.task
    if isinstance(task, MissingPatch):
        mask = target.mask.expand_as(target.images)
        return ((output - target.images) * mask).square().sum() / mask.sum()
    if task.metric == "accuracy" or isinstance(task, Colorization):
        return task.loss(output, target)
    squared = F.mse_loss(output, target, reduction="sum") / len(target)
    steps = output.shape[1] if task.name in ("future", "next_step") else 1
    return squared / steps


def stock_pretext_backward(model: Model, phase: str, samples: Tensor, draws: dict[str, Tensor]) -> None:
    """The gradients of a phase of a task, with the losses as people write them."""
    assert isinstance(model, PretextModel)
    task, critic = model.task, model.critic
    if phase == "critic":
        assert isinstance(task, MissingPatch) and critic is not None
        with torch.no_grad():
            input, target = task.transform(samples, draws=draws)
            fake = task.filled(model.predict(input), target)
        loss = F.softplus(-critic(samples)).mean() + F.softplus(critic(fake)).mean()
    else:
        input, target = task.transform(samples, draws=draws)
        output = model.predict(input)
        loss = _task_loss(model, output, target)
        if critic is not None:
            assert isinstance(task, MissingPatch)
            fooling = F.softplus(-critic(task.filled(output, target))).mean()
            loss = (1 - task.adversarial) * loss + task.adversarial * fooling
    loss.backward(inputs=model.phase_parameters(phase))


def _images(data: str, count: int | None = None) -> ImageSet:
    total, channels, size = DATA[data]
    images = torch.rand(count or total, channels, size, size, generator=torch.Generator().manual_seed(0))
    return ImageSet(data, images, 1)


def _contenders(name: str, data: str, device: torch.device, dtype: torch.dtype, *, small: bool) -> Contenders:
    images = _images(data, 8 if small else None)
    config = presets.training(name, images, batch=SMALL_BATCH if small else None)
    backward: Callable[[Model, str, Tensor, dict[str, Tensor]], None] = stock_backward
    model: Model
    if name in presets.RECIPES:
        model, samples = presets.build(name, images), images.images
    else:
        samples = pretext.samples(name, images.images, 0)
        model, backward = pretext.build(name, samples).train(), stock_pretext_backward
    model.to(device, dtype)
    batch = samples[torch.arange(config.batch) % len(samples)].to(device, dtype)
    plain: Any = stock(model)
    agree(model, plain, batch, backward)
    trainer = Trainer(model, samples, config, device=device.type)
    model.to(device, dtype)

    def fetch() -> None:
        for number in range(len(model.phases)):
            trainer.batch(0, number)

    return {
        "eager": training_step(plain, batch, backward),
        "genmod": training_step(model, batch, genmod_backward),
        "genmod:data": fetch,
    }


def _step(name: str, data: str) -> Step:
    _, channels, size = DATA[data]
    batch = presets.training(name, _images(data, 2)).batch
    return Step(
        "recipe_step" if name in presets.RECIPES else "pretext_step",
        f"{name.replace('_', '-')} on {data} [{batch}, {channels}, {size}, {size}]",
        lambda device, dtype: _contenders(name, data, device, dtype, small=False),
        lambda device, dtype: _contenders(name, data, device, dtype, small=True),
    )


STEPS = tuple(
    _step(name, data)
    for data, (_, channels, _) in DATA.items()
    for name in (*presets.RECIPES, *tasks())
    if channels == 3 or name != "colorization"
)
