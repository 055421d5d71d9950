"""`genmod pretext`: an encoder that learns from labels made of the images; `genmod probe` says what it then knows.

Tasks about time see clips made of the images: small ones (up to 16 pixels) move across a canvas of twice their size, of
larger ones a window of half their size moves across the image.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genmod.pretext import Colorization, PretextConfig, PretextModel, clips, tasks
from genmod.recipes import RecipeError, command, data, pictures
from genmod.recipes.batches import CLIPS, seed_of
from genmod.recipes.presets import stages_of
from genmod.recipes.train import add_training_arguments, config_of, facts, fit, tell

FRAMES = 8
SCORED = 1000  # held-out samples at most
FITTED = 2000  # samples at most that a task's options are fitted to


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `genmod pretext`."""
    names = [name.replace("_", "-") for name in tasks()]
    parser.add_argument("task", choices=names, metavar="TASK", help=", ".join(names))
    add_training_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Run the command; see `command.exit_code`."""
    return command.exit_code("pretext", lambda: run(args))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, score against chance, draw the curve. Returns what is also in metrics.json."""
    console = command.console()
    images = data.load(args.data, report=command.sayer(console), size=args.size)
    task = args.task.replace("-", "_")
    train, test = (samples(task, part, args.seed) for part in (images.train, images.test[:SCORED]))
    config = config_of(args, task, images)
    torch.manual_seed(args.seed)
    model = build(task, train)
    out = command.make_folder(args.out or Path("out") / f"{args.task}-{images.name}")
    result = fit(model, train, config, args, out, console, f"{args.task} on {images.name}")
    if not command.is_main_process():
        return {}
    found = facts(images, config, result)
    device = next(result.model.parameters()).device
    score, chance = result.model.evaluate(test.to(device), torch.Generator(device).manual_seed(args.seed))
    found["measured"] = {f"held-out {model.task.metric}": score, "that of chance": chance}
    with command.writing("pictures and numbers", out):
        pictures.save_losses(out / "losses.png", result.curve, f"{args.task} on {images.name}")
        (out / "metrics.json").write_text(json.dumps(found, indent=1) + "\n")
    tell(console, found, out)
    return found


def samples(task: str, images: Tensor, seed: int) -> Tensor:
    """What a task trains on: the images, or a clip `[T, C, H, W]` made of each."""
    if not tasks()[task].clips:
        return images
    generator, size = torch.Generator().manual_seed(seed_of(CLIPS, seed)), images.shape[-1]
    if size <= 16:
        return clips.translate(images, FRAMES, 2 * size, generator=generator).frames
    return clips.pan(images, FRAMES, size // 2, generator=generator).frames


def options(task: str, samples: Tensor) -> dict[str, Any]:
    """What a task learns from the training samples before it starts: how rare each colour is, for its weight."""
    return {} if task != "colorization" else {"prior": Colorization().fit(samples[:FITTED]).prior}


def build(task: str, samples: Tensor) -> PretextModel:
    """The model for a task, tried on two samples before it costs anything.

    Raises:
        RecipeError: images that the task cannot take.
    """
    size, channels = samples.shape[-1], samples.shape[-3]
    width = 32 if size <= 16 else 16
    try:
        config = PretextConfig(task, options(task, samples), size, channels, FRAMES, width, stages_of(size))
        model = PretextModel.from_config(config).eval()
        model.evaluate(samples[:2], torch.Generator().manual_seed(0))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{task.replace('_', '-')}: {error}") from error
    return model
