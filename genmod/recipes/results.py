"""The table of results in docs/recipes.md: every recipe with its own settings, over several seeds, on one CPU thread.

    python -m genmod.recipes.results run benchmarks/results/recipes_digits.json --data digits --seeds 0 1 2
    python -m genmod.recipes.results table benchmarks/results/recipes_digits.json

`run` leaves out what the file already has, and saves after each training.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
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
    "seconds": ("seconds", "{:.0f}"),
}


def run(path: Path, name: str, recipes: list[str], seeds: list[int], budget: float) -> None:
    """Train what the file does not have yet, until `budget` seconds are over."""
    torch.set_num_threads(1)
    images = data.load(name)
    extractor = metrics.feature_extractor(images.train, images.train_labels)
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []
    done = {(each["recipe"], each["seed"]) for each in runs}
    begin = time.monotonic()
    for seed in seeds:
        for recipe in recipes:
            if (recipe, seed) in done or time.monotonic() - begin > budget:
                continue
            torch.manual_seed(seed)
            model, config = build(recipe, images), training(recipe, images, seed=seed)
            start = time.process_time()
            result = train(model, images.train, config, device="cpu", log=False, finish=fit_prior(images))
            seconds = time.process_time() - start
            found = evaluate.evaluate(result.model, images, seed, extractor)
            cost = {"seconds": seconds, "step_seconds": seconds / config.steps, "data_share": result.data_share}
            runs.append({"recipe": recipe, "seed": seed, "steps": config.steps, "batch": config.batch, **found, **cost})
            where = {"data": name, "torch": torch.__version__, "python": platform.python_version(), "threads": 1}
            path.write_text(json.dumps({**where, "machine": platform.machine(), "runs": runs}, indent=1) + "\n")
            print(recipe, seed, {key: round(value, 3) for key, value in found.items()}, f"{seconds:.1f} s", flush=True)


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: the mean over seeds of each recipe, and half of the range from the worst to the best seed."""
    lines = ["| recipe | steps | seeds | " + " | ".join(title for title, _ in COLUMNS.values()) + " |"]
    lines.append("|---|--:|--:" + "|--:" * len(COLUMNS) + "|")
    for recipe in RECIPES:
        mine = [each for each in runs if each["recipe"] == recipe]
        if mine:
            cells = [_cell([each[key] for each in mine if key in each], form) for key, (_, form) in COLUMNS.items()]
            lines.append(f"| `{recipe}` | {mine[0]['steps']} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float], form: str) -> str:
    if not values:
        return ""
    spread = (max(values) - min(values)) / 2
    return form.format(statistics.fmean(values)) + (f" ± {form.format(spread)}" if len(values) > 1 else "")


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
