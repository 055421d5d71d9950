"""The table of results in docs/recipes.md: every recipe with its own settings, over several seeds, on one CPU thread.

    python -m genmod.recipes.results run benchmarks/results/recipes_digits.json --data digits --seeds 0 1 2
    python -m genmod.recipes.results table benchmarks/results/recipes_digits.json

`run` leaves out what the file already has, and saves after each training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from genmod.recipes import data, evaluate, metrics
from genmod.recipes.presets import RECIPES, build, training
from genmod.recipes.train import fit_prior
from genmod.recipes.trainer import train

COLUMNS = {
    "mse": ("error per pixel", "{:.4f}"),
    "nelbo": ("negative ELBO", "{:.1f}"),
    "kl": ("KL", "{:.1f}"),
    "fid": ("FID", "{:.1f}"),
    "kid": ("KID", "{:.2f}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "seconds": ("CPU seconds", "{:.0f}"),
    "data_share": ("fetching data", "{:.1%}"),
}


def run(path: Path, name: str, recipes: list[str], seeds: list[int], budget: float) -> None:
    """Train what the file does not have yet, until `budget` seconds are over."""
    images = data.load(name)
    extractor = metrics.feature_extractor(images.train, images.train_labels)

    def one(recipe: str, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        model, config = build(recipe, images), training(recipe, images, seed=seed)
        start = time.process_time()
        result = train(model, images.train, config, device="cpu", log=False, finish=fit_prior(images))
        seconds = time.process_time() - start
        return {
            "steps": config.steps,
            "batch": config.batch,
            **evaluate.evaluate(result.model, images, seed, extractor),
            "seconds": seconds,
            "step_seconds": seconds / config.steps,
            "data_share": result.data_share,
        }

    complete(path, name, "recipe", recipes, seeds, budget, one)


def complete(
    path: Path,
    data_name: str,
    kind: str,
    names: list[str],
    seeds: list[int],
    budget: float,
    one: Callable[[str, int], dict[str, Any]],
) -> None:
    """Add the runs that a file does not have yet, on one thread, until `budget` seconds are over; save after each.

    Args:
        path: the JSON file.
        data_name: of the images, for the file.
        kind: what the names are of, "recipe" or "task": the key that they have in the file.
        names, seeds: all pairs are wanted, seed by seed.
        budget: seconds after which no other run begins.
        one: called with a name and a seed; returns what is written down about the run.
    """
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []
    done = {(each[kind], each["seed"]) for each in runs}
    where = {"data": data_name, "torch": torch.__version__, "python": platform.python_version(), "threads": 1}
    begin = time.monotonic()
    for seed, name in itertools.product(seeds, names):
        if (name, seed) in done or time.monotonic() - begin > budget:
            continue
        runs.append({kind: name, "seed": seed, **one(name, seed)})
        path.write_text(json.dumps({**where, "machine": platform.machine(), "runs": runs}, indent=1) + "\n")
        print(" ".join(f"{key}={_short(value)}" for key, value in runs[-1].items()), flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over the seeds of each recipe."""
    return of_seeds(runs, "recipe", list(RECIPES), COLUMNS)


def of_seeds(runs: list[dict[str, Any]], kind: str, names: list[str], columns: Mapping[str, tuple[str, str]]) -> str:
    """Markdown: a row for each name that has runs; columns are those of `columns`, key -> (title, format)."""
    lines = [f"| {kind} | steps | seeds | " + " | ".join(title for title, _ in columns.values()) + " |"]
    lines.append("|---|--:|--:" + "|--:" * len(columns) + "|")
    for name in names:
        mine = [each for each in runs if each[kind] == name]
        if mine:
            cells = [_cell([each[key] for each in mine if key in each], form) for key, (_, form) in columns.items()]
            lines.append(f"| `{name}` | {mine[0]['steps']} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float], form: str) -> str:
    if not values:
        return ""
    mean = form.format(statistics.fmean(values))
    return f"{mean} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else mean


def main(arguments: list[str] | None = None) -> int:
    """The two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds after which no other training begins")
    args = parser.parse_args(arguments)
    if args.command == "run":
        os.makedirs(args.file.parent, exist_ok=True)
        run(args.file, args.data, args.recipes, args.seeds, args.budget)
    else:
        print(table(json.loads(args.file.read_text())["runs"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
