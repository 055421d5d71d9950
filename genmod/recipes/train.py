"""`genmod train`: any recipe on any images; checkpoints, curves, pictures and numbers in one folder."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from genmod.models import GAN, Autoencoder
from genmod.recipes import command, data, need
from genmod.recipes.data import ImageSet
from genmod.recipes.presets import RECIPES, build, training
from genmod.recipes.trainer import Result, TrainConfig, train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `genmod train`."""
    recipes = "\n".join(f"  {name:13} {recipe.about}" for name, recipe in RECIPES.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = f"Train a model. Recipes:\n{recipes}"
    parser.add_argument("recipe", choices=list(RECIPES), metavar="RECIPE", help="one of the above")
    add_training_arguments(parser)
    parser.add_argument("--no-metrics", dest="metrics", action="store_false", help="leave out FID and the like")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """What all commands that train have in common."""
    add = parser.add_argument
    add("--data", default="digits", metavar="digits|photos|shapes|PATH", help="images (default: %(default)s)")
    add("--size", type=command.positive, metavar="PIXELS", help="resize the images to PIXELS x PIXELS")
    add("--steps", type=command.positive, help="training steps (default: by the images' size)")
    add("--batch", type=command.positive, help="images in a step, all processes together (default: by their size)")
    add("--learning-rate", type=_rate, metavar="RATE", help="default: the recipe's own")
    add("--ema", type=float, metavar="DECAY", help="average the weights with this decay, and use the average")
    add("--seed", type=command.natural, default=0, help="of weights, batches and noise (default: %(default)s)")
    add("--out", type=Path, help="folder for all results (default: out/RECIPE-DATA)")
    add("--resume", action="store_true", help="go on from the newest checkpoint in the folder")
    add("--save-every", type=command.positive, metavar="STEPS", help="between checkpoints (default: 200)")
    add("--precision", choices=["no", "bf16"], help="default: no (float32), or what accelerate launch was told")
    add("--accumulate", type=command.positive, default=1, metavar="PARTS", help="compute a batch in so many parts")
    add("--device", choices=["cpu", "cuda"], help="default: what Accelerate finds")


def main(args: argparse.Namespace) -> int:
    """Run the command; see `command.exit_code`."""
    return command.exit_code("train", lambda: run(args))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, draw, measure. Returns what is also in metrics.json."""
    console = command.console()
    images = data.load(args.data, report=command.sayer(console), size=args.size)
    config = config_of(args, args.recipe, images)
    torch.manual_seed(args.seed)
    model = build(args.recipe, images)
    out = command.make_folder(args.out or Path("out") / f"{args.recipe}-{images.name}")
    result = fit(model, images.train, config, args, out, console, f"{args.recipe} on {images.name}", fit_prior(images))
    if not command.is_main_process():
        return {}
    # The trained model is in its checkpoint by now, whatever happens to the pictures.
    with console.status("drawing and measuring"), command.writing("pictures and numbers", out):
        found = facts(images, config, result)
        found["measured"] = _look(result, images, args, out)
        (out / "metrics.json").write_text(json.dumps(found, indent=1) + "\n")
    tell(console, found, out)
    return found


def config_of(args: argparse.Namespace, recipe: str, images: ImageSet) -> TrainConfig:
    """The recipe's settings, with those that were given on the command line."""
    names = ("steps", "batch", "learning_rate", "ema", "seed", "save_every", "precision", "accumulate")
    return training(recipe, images, **{name: getattr(args, name) for name in names})


def fit(
    model: Any,
    images: torch.Tensor,
    config: TrainConfig,
    args: argparse.Namespace,
    out: Path,
    console: Any,
    title: str,
    finish: Callable[[Any], None] | None = None,
) -> Result:
    """Train with the options that all commands share."""
    report = command.sayer(console)
    return train(
        model,
        images,
        config,
        out=out,
        resume=args.resume,
        device=args.device,
        finish=finish,
        console=console if command.is_main_process() else None,
        title=title,
        report=report,
    )


def fit_prior(images: ImageSet) -> Callable[[Any], None]:
    """What to do when training is over: an autoencoder learns where its codes lie, so that it can be sampled from."""

    def finish(model: Any) -> None:
        if isinstance(model, Autoencoder):
            model.eval()
            model.fit_prior(images.train)
            model.train()

    return finish


def facts(images: ImageSet, config: TrainConfig, result: Result) -> dict[str, Any]:
    """What was run, for metrics.json."""
    return {
        "data": {"name": images.name, "shape": list(images.images.shape), "held_out": images.held_out},
        "model": {"class": type(result.model).__name__, **dataclasses.asdict(result.model.config)},
        "training": dataclasses.asdict(config),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "step_seconds": result.step_seconds,
        "data_share": result.data_share,
        "final_loss": {phase: losses[-1] for phase, losses in result.curve.items()},
    }


def tell(console: Any, found: dict[str, Any], out: Path) -> None:
    """The results, as a table."""
    table = need("rich.table").Table(show_header=False)
    table.add_row("training step", f"{found['step_seconds'] * 1e3:.2f} ms, {found['data_share']:.1%} fetching data")
    for name, value in found["measured"].items():
        table.add_row(name.replace("_", " "), f"{value:,.4g}")
    console.print(table)
    command.sayer(console)(f"Everything is in {out}")


def _look(result: Result, images: ImageSet, args: argparse.Namespace, out: Path) -> dict[str, float]:
    from genmod.recipes import evaluate, pictures

    pictures.save_losses(out / "losses.png", result.curve, f"{args.recipe} on {images.name}")
    evaluate.draw(result.model, images, args.seed, out)
    if args.metrics:
        return evaluate.evaluate(result.model, images, args.seed)
    return {} if isinstance(result.model, GAN) else evaluate.reconstruction(result.model, images)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"wanted a number above 0 and below 100, got {text!r}")
    return value
