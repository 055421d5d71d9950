"""Which objective disentangles? MIG, DCI and SAP of several VAEs on images made from known factors, over seeds.

Every run is written down when it is done, so a run of many can be stopped at any moment and goes on where it was:

    python -m genmod.recipes.disentangle OUT
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genmod import latent
from genmod.latent import metrics
from genmod.models import VAE, VAEConfig
from genmod.recipes import RecipeError, need, pictures, shapes

Report = Callable[[str], None]


@dataclass(frozen=True)
class Method:
    """What is varied: the objective of the VAE and its beta, and the weight of the orthogonality penalty."""

    objective: str
    beta: float
    orthogonality: float = 0.0


METHODS = {
    "VAE": Method("vae", 1.0),
    "β-VAE": Method("vae", 4.0),
    "β-TCVAE": Method("beta_tc", 4.0),
}
SCORES = {"mig": "MIG", "disentanglement": "DCI disentanglement", "sap": "SAP"}
MORE = {
    "mig_posterior": "MIG of q(z\\|x)",
    "completeness": "DCI completeness",
    "informativeness": "DCI informativeness",
    "total_correlation": "TC, nats",
    "reconstruction": "reconstruction, nats",
    "kl": "KL, nats",
}


@dataclass(frozen=True)
class DisentangleConfig:
    """How each VAE is trained and measured.

    evaluated: images, balanced over the factors, for DCI and SAP; MIG takes all. trees: of DCI's forests. draws: of the
    expectation in MIG of q(z|x). restarts, probes: see the code's callers.
    """

    steps: int = 1000
    batch_size: int = 128
    lr: float = 2e-3
    latent_dim: int = 10
    width: int = 8
    stages: int = 3
    evaluated: int = 4000
    trees: int = 40
    draws: int = 400
    data: shapes.ShapesConfig = dataclasses.field(default_factory=shapes.ShapesConfig)


def run(
    folder: Path,
    config: DisentangleConfig | None = None,
    *,
    seeds: Sequence[int] = range(5),
    methods: Sequence[str] = tuple(METHODS),
    budget: float | None = None,
    report: Report = print,
) -> list[dict[str, Any]]:
    """Train and measure every method with every seed that `folder/runs.json` does not have yet.

    Args:
        folder: where runs.json is, and where the table and the figures go once all runs are there.
        config: of every run; one folder holds runs of one configuration.
        seeds: of the weights, the batches and the noise.
        methods: names in METHODS.
        budget: seconds after which no further run is begun; no limit if omitted.
        report: gets a line for each run.

    Returns:
        The runs that are done, each with "method", "seed", the scores, and the information table of MIG.

    Raises:
        RecipeError: an unknown method, or runs.json holds runs of another configuration.
    """
    config, begin = config or DisentangleConfig(), time.perf_counter()
    if unknown := [name for name in methods if name not in METHODS]:
        raise RecipeError(f"methods: got {unknown}, expected some of {', '.join(METHODS)}")
    folder.mkdir(parents=True, exist_ok=True)
    runs = _read(folder / "runs.json", config)
    done = {(one["method"], one["seed"]) for one in runs}
    data = shapes.make(config.data)
    wanted = [(name, seed) for seed in seeds for name in methods]  # seed by seed: each prefix is a fair comparison
    for name, seed in wanted:
        if (name, seed) in done:
            continue
        if budget is not None and time.perf_counter() - begin > budget:
            report(f"stopped after {budget:g} s; call again to go on")
            return runs
        start = time.perf_counter()
        model = train(METHODS[name], data, config, seed)
        scores = evaluate(model, data, config, seed)
        runs.append({"method": name, "seed": seed, "seconds": time.perf_counter() - start, **scores})
        _write(folder / "runs.json", config, runs)
        if seed == seeds[0]:
            save_traversal(folder / f"traversal_{list(METHODS).index(name)}.png", model, data)
        report(f"{name}, seed {seed}: " + ", ".join(f"{text} {scores[key]:.3f}" for key, text in SCORES.items()))
    (folder / "table.md").write_text(table(runs))
    save_figure(folder / "disentanglement.png", runs)
    return runs


def train(method: Method, data: shapes.Shapes, config: DisentangleConfig, seed: int) -> VAE:
    """One VAE; the same seed gives the same weights, batches and noise to every method."""
    torch.manual_seed(seed)
    model = VAE(
        VAEConfig(
            image_size=config.data.image_size,
            channels=1,
            latent_dim=config.latent_dim,
            width=config.width,
            stages=config.stages,
            objective=method.objective,  # type: ignore[arg-type]  # METHODS holds no other word than the config takes
            beta=method.beta,
            dataset_size=len(data.images),
        )
    )
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for step in range(config.steps):
        images = data.images[torch.randint(len(data.images), (config.batch_size,), generator=draws)]
        noise = model.draw("model", config.batch_size, draws)
        optimizer.zero_grad()
        model.backward("model", images, noise, step=step)
        if method.orthogonality:
            penalty = latent.orthogonality_penalty(
                model.decode, model.prior(8, draws), estimator="pairs", generator=draws
            )
            (method.orthogonality * penalty).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def evaluate(model: VAE, data: shapes.Shapes, config: DisentangleConfig, seed: int) -> dict[str, Any]:
    """All scores of one model. DCI and SAP see means of q(z|x); MIG both those and q(z|x) itself."""
    mean, logvar = latent.posteriors(model, data.images, chunk=512)
    draws = torch.Generator().manual_seed(seed)
    some = data.balanced(config.evaluated, draws)
    bins = metrics.mig(mean, data.factors)
    exact = metrics.mig_of_posterior(mean, logvar, data.factors, samples=config.draws, generator=draws)
    dci = metrics.dci(mean[some], data.factors[some], trees=config.trees, seed=seed)
    # The paper's rule: a linear fit for what has a scale, a classifier for what has none.
    ordered = [name != "shape" for name in shapes.FACTORS]
    sap = metrics.sap(mean[some], data.factors[some], continuous=ordered, seed=seed)
    with torch.no_grad():
        elbo = model.elbo(data.images[some[:1000]], generator=draws)
    return {
        "mig": bins.score,
        "mig_posterior": exact.score,
        "disentanglement": dci.disentanglement,
        "completeness": dci.completeness,
        "informativeness": dci.informativeness,
        "sap": sap.score,
        "total_correlation": metrics.posterior_total_correlation(mean, logvar, generator=draws),
        "reconstruction": float(elbo.parts["reconstruction"]),
        "kl": float(elbo.parts["kl"]),
        "mig_per_factor": bins.per_factor.tolist(),
        "sap_per_factor": sap.per_factor.tolist(),
        "information": (exact.information / exact.entropy).tolist(),
    }


# ------------------------------------------------------------------------------------------------------------- results


def _read(path: Path, config: DisentangleConfig) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text())
        before, runs = found["config"], found["runs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{path} is not a file of runs: {error}; move it away to begin anew") from error
    if before != dataclasses.asdict(config):
        raise RecipeError(f"{path} has runs of another configuration; give another folder, or move it away")
    return runs


def _write(path: Path, config: DisentangleConfig, runs: list[dict[str, Any]]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"config": dataclasses.asdict(config), "runs": runs}, indent=1) + "\n")
    os.replace(part, path)  # in one step: stopped here, the file of before is whole


def _of(runs: list[dict[str, Any]], method: str, score: str) -> list[float]:
    return [one[score] for one in runs if one["method"] == method]


def _methods(runs: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(one["method"] for one in runs))


def table(runs: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds, as Markdown, a row for each method."""
    columns = {**SCORES, **MORE}
    lines = ["| | " + " | ".join(columns.values()) + " |", "|---" + "|--:" * len(columns) + "|"]
    for method in _methods(runs):
        cells = [_mean_and_spread(_of(runs, method, score)) for score in columns]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean_and_spread(values: list[float]) -> str:
    digits = 1 if abs(statistics.fmean(values)) >= 10 else 2
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):.{digits}f} ± {spread:.{digits}f}"


def save_figure(path: Path, runs: list[dict[str, Any]]) -> None:
    """Every run as a dot, with the mean of each method: one panel for each score."""
    figure = need("matplotlib.figure").Figure(figsize=(9, 3.2), dpi=pictures.DPI, layout="constrained")
    methods = _methods(runs)
    for axes, (score, title) in zip(figure.subplots(1, len(SCORES)), SCORES.items()):
        for column, method in enumerate(methods):
            values = _of(runs, method, score)
            beside = [column + 0.08 * (i - (len(values) - 1) / 2) for i in range(len(values))]
            axes.plot(beside, values, "o", color=pictures.GENMOD, alpha=0.6, markersize=5, markeredgewidth=0)
            axes.hlines(statistics.fmean(values), column - 0.3, column + 0.3, color=pictures.INK, linewidth=1.5)
        axes.set_title(title, loc="left", color=pictures.INK)
        axes.set_xticks(range(len(methods)), methods)
        axes.set_xlim(-0.5, len(methods) - 0.5)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    figure.savefig(path)


def save_traversal(path: Path, model: VAE, data: shapes.Shapes, rows: int = 6, columns: int = 9) -> None:
    """The latents with the largest KL, each moved through [-2, 2] from the code of the image in the middle."""
    mean, logvar = latent.posteriors(model, data.images, chunk=512)
    dims, kl = latent.by_information(mean, logvar)
    middle = torch.tensor([[2, *(size // 2 for size in data.sizes[1:])]])
    values = torch.linspace(-2, 2, columns)
    grid: Tensor = latent.traverse(mean[data.index(middle)[0]], dims[:rows].tolist(), values)
    pictures.save_traversal(path, latent.decode(model, grid), dims[:rows].tolist(), kl[:rows].tolist(), values.tolist())


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m genmod.recipes.disentangle", description=__doc__)
    parser.add_argument("folder", type=Path, help="where runs, table and figures go")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: %(default)s)")
    parser.add_argument("--budget", type=float, help="begin no further run after so many seconds")
    args = parser.parse_args(argv)
    try:
        run(args.folder, seeds=range(args.seeds), budget=args.budget)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
