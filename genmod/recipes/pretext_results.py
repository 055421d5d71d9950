"""The tables of results in docs/pretext.md: every task with the settings of `genmod pretext`, over several seeds.

    python -m genmod.recipes.pretext_results benchmarks/results/pretext_digits.json --data digits
    python -m genmod.recipes.pretext_results benchmarks/results/pretext_photos.json --data photos

trains what the file lacks, on one CPU thread, and prints the table; `genmod bench tables` writes it into the page.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from genmod.pretext import PretextModel, tasks
from genmod.recipes import data
from genmod.recipes.batches import SCORE, seed_of
from genmod.recipes.data import ImageSet
from genmod.recipes.presets import training
from genmod.recipes.pretext import SCORED, build, samples
from genmod.recipes.results import complete, of_seeds
from genmod.recipes.trainer import train

DRAWS = 10  # of what is asked about the held-out images, which are few: 179 digits, 64 photos
COLUMNS = {
    "accuracy": ("accuracy", "{:.1%}"),
    "error": ("error", "{:.5f}"),
    "chance": ("of chance", "{:.5f}"),
    "seconds": ("CPU seconds", "{:.0f}"),
    "data_share": ("fetching data", "{:.1%}"),
}


def wanted(channels: int) -> list[str]:
    """The tasks that can be trained on images of so many channels: grey ones have no colours to predict."""
    return [name for name in tasks() if channels == 3 or name != "colorization"]


def run(path: Path, name: str, names: list[str], seeds: list[int], budget: float) -> None:
    """Train what the file does not have yet, until `budget` seconds are over."""
    images = data.load(name)

    def one(task: str, seed: int) -> dict[str, Any]:
        train_on = samples(task, images.train, seed)
        config = training(task, images, seed=seed)
        torch.manual_seed(seed)
        model = build(task, train_on)
        start = time.process_time()
        result = train(model, train_on, config, device="cpu", log=False)
        seconds = time.process_time() - start
        score, chance = held_out(result.model, images, seed)
        return {
            "steps": config.steps,
            "batch": config.batch,
            model.task.metric: score,
            "chance": chance,
            "seconds": seconds,
            "step_seconds": seconds / config.steps,
            "data_share": result.data_share,
        }

    possible = wanted(images.images.shape[1])
    complete(path, name, "task", [task for task in names if task in possible], seeds, budget, one)


def held_out(model: PretextModel, images: ImageSet, seed: int) -> tuple[float, float]:
    """Score and chance: means over several draws of clips, turns, holes and the like from the held-out images."""
    found = []
    for draw in range(DRAWS):
        test = samples(model.task.name, images.test[:SCORED], seed + draw)
        found.append(model.evaluate(test, torch.Generator().manual_seed(seed_of(SCORE, seed, draw))))
    scores, chances = zip(*found, strict=True)
    return statistics.fmean(scores), statistics.fmean(chances)


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over the seeds of each task."""
    return of_seeds(runs, "task", list(tasks()), COLUMNS)


def main(arguments: list[str] | None = None) -> int:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--tasks", nargs="+", choices=list(tasks()), default=list(tasks()))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds after which no other training begins")
    args = parser.parse_args(arguments)
    args.file.parent.mkdir(parents=True, exist_ok=True)
    run(args.file, args.data, args.tasks, args.seeds, args.budget)
    print(table(json.loads(args.file.read_text())["runs"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
