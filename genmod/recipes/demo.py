"""The demo: one convolutional VAE on real images, trained with stock PyTorch's sampling and with genmod's.

Both models start from the same weights and see the same batches and the same noise; their steps alternate, so what
disturbs the machine disturbs both. The tables say what genmod changed, and what it did not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genmod.explain import explain
from genmod.measure import interleaved, peak_bytes, synchronize
from genmod.models import VAE, VAEConfig
from genmod.nn import GaussianSampler
from genmod.recipes import RecipeError, need
from genmod.recipes.data import ImageSet, load

LARGE = (4096, 512)  # a batch of latents so large that the memory traffic of sampling shows
TRAVERSED = 8  # latents drawn in the traversal


class StockSampler(nn.Module):
    """Sampling and KL the way people write them in PyTorch: a dozen small operations."""

    def forward(
        self, params: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        mean, logvar = params.chunk(2, dim=1)
        if noise is None:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        z = mean + torch.exp(0.5 * logvar) * noise
        kl = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp()) / len(mean)
        return z, kl


SAMPLERS: dict[str, Callable[[], nn.Module]] = {"stock": StockSampler, "genmod": GaussianSampler}


# ---------------------------------------------------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `genmod demo`."""
    data = (
        "the shipped digits or photographs, a folder of images, or MNIST or CIFAR-10 files (default: all, both shipped)"
    )
    parser.add_argument("--data", default="all", metavar="digits|photos|all|PATH", help=data)
    parser.add_argument(
        "--out", type=Path, default=Path("out/demo"), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and noise (default: %(default)s)")
    parser.add_argument("--steps", type=_positive, help="training steps of each model (default: by the images' size)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is a GPU")


def main(args: argparse.Namespace) -> int:
    """Run the demo. Returns the exit code: 2 where the user can put something right, with one message on stderr."""
    try:
        run(args.data, args.out, steps=args.steps, seed=args.seed, device=args.device)
    except RecipeError as error:
        print(f"genmod demo: {error}", file=sys.stderr)
        return 2
    return 0


def run(
    data: str, out: Path | str, *, steps: int | None = None, seed: int = 0, device: str | None = None
) -> dict[str, dict[str, Any]]:
    """Train, measure, draw and print; returns the metrics of each data set, which are also in its metrics.json.

    Nothing is written before all the data is read. Raises `RecipeError`.
    """
    console = need("rich.console").Console()
    for module in ("rich.progress", "rich.table", "matplotlib.figure"):
        need(module)  # what is missing is better said now than after the training
    target = _device(device)
    names = ["digits", "photos"] if data == "all" else [data]
    sets = [load(name, report=lambda line: _say(console, line)) for name in names]
    folders = [_folder(Path(out) / images.name) for images in sets]
    with console.status("timing sampling and KL alone"):
        alone = measure_alone(target)
    results = {}
    for images, folder in zip(sets, folders, strict=True):
        plan = _plan(images, steps)
        with _one_thread():
            runs = train(images.train, plan, seed, target, console, images.name)
            with console.status("measuring and drawing"):
                metrics = {**_facts(images, plan, seed, target), **measure(runs, images, plan, seed, target), **alone}
                _draw(runs["genmod"].model, images, seed, folder)
                _draw_curves(runs, folder)
                (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
        _print(metrics, folder, console)
        results[images.name] = metrics
    _print_alone(alone, console)
    return results


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One CPU thread: the same curves on every number of cores, and nothing lost to other work on the machine.

    Layers this small gain little from more threads, and on a shared core the threads wait for each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"--out: cannot write to {path}: {error}") from error
    return path


def _facts(images: ImageSet, plan: Plan, seed: int, device: torch.device) -> dict[str, Any]:
    """What was run, and on what: the part of metrics.json that is not measured."""
    return {
        "data": {"name": images.name, "shape": list(images.images.shape), "held_out": images.held_out},
        "device": _device_name(device),
        "backend": explain("sample_kl", torch.empty(1, 2, device=device)).backend,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seed": seed,
        **asdict(plan),
    }


# ------------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Plan:
    """What to train, on how many images at once, at which learning rate to begin with, and for how long."""

    model: VAEConfig
    batch: int
    rate: float
    steps: int


@dataclass
class Run:
    """One of the two models, with the loss (nats per image) and the duration (seconds) of each of its steps."""

    model: VAE
    optimizer: torch.optim.Optimizer
    losses: list[float]
    seconds: list[float]


def _plan(images: ImageSet, steps: int | None) -> Plan:
    """Sizes that one CPU core trains in half a minute.

    The pixels of the digits are counts out of 16, so these are their trials; for other images 4 ask for fair detail.
    """
    channels, size = images.images.shape[1:3]
    small = size <= 16
    stages = next(count for count in (3, 2) if size % 2**count == 0 and size // 2**count > 1)
    width, trials, batch, rate = (32, 16, 64, 3e-3) if small else (16, 4, 32, 1e-3)
    model = VAEConfig(size, channels, min(2 * size, 64), width, stages, trials=trials)
    batch = min(batch, len(images.train))
    return Plan(model, batch, rate, steps or (1000 if small else 700))


def train(images: Tensor, plan: Plan, seed: int, device: torch.device, console: Any, title: str) -> dict[str, Run]:
    """Train one model for each sampler, step by step: the same batch and noise, taking turns at going first."""
    progress_module = need("rich.progress")
    runs = {name: _start(sampler(), plan, seed, device) for name, sampler in SAMPLERS.items()}
    draw = torch.Generator().manual_seed(seed)
    bar, count, left = (
        getattr(progress_module, f"{kind}Column")() for kind in ("Bar", "MofNComplete", "TimeRemaining")
    )
    columns = ["{task.description}", bar, count, "steps", left, "loss {task.fields[loss]:,.1f}"]
    with progress_module.Progress(*columns, console=console) as progress:
        task = progress.add_task(f"{title}: stock + genmod", total=plan.steps, loss=math.nan)
        for step in range(plan.steps):
            batch = images[torch.randint(len(images), (plan.batch,), generator=draw)].to(device)
            noise = torch.randn(plan.batch, plan.model.latent_dim, generator=draw).to(device)
            rate = plan.rate * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
            for name in list(runs) if step % 2 else reversed(runs):
                _step(runs[name], batch, noise, rate)
                if not math.isfinite(runs[name].losses[-1]):
                    raise RecipeError(f"{title}: the {name} model's loss is {runs[name].losses[-1]} at step {step + 1}")
            progress.update(task, advance=1, loss=runs["genmod"].losses[-1])
    return runs


def _start(sampler: nn.Module, plan: Plan, seed: int, device: torch.device) -> Run:
    torch.manual_seed(seed)
    model = VAE(plan.model, sampler).to(device)
    return Run(model, torch.optim.Adam(model.parameters()), [], [])


def _step(run: Run, batch: Tensor, noise: Tensor, rate: float) -> None:
    synchronize(batch.device)
    start = time.perf_counter()
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad()
    loss = run.model.loss(batch, draws={"noise": noise}).loss
    loss.backward()
    run.optimizer.step()
    run.losses.append(loss.item())
    synchronize(batch.device)
    run.seconds.append(time.perf_counter() - start)


# ------------------------------------------------------------------------------------------------------------ measuring


def measure(runs: dict[str, Run], images: ImageSet, plan: Plan, seed: int, device: torch.device) -> dict[str, Any]:
    """What training cost and reached: seconds, bytes, and nats per image, each for stock and genmod."""
    shape = (plan.batch, plan.model.latent_dim)
    batch = images.train[: plan.batch].to(device)
    warm = min(10, plan.steps // 2)
    stock, ours = runs["stock"].losses, runs["genmod"].losses
    worst = max(range(plan.steps), key=lambda step: abs(stock[step] - ours[step]))
    return {
        "step_seconds": {name: statistics.median(run.seconds[warm:]) for name, run in runs.items()},
        "step_peak_bytes": {name: peak_bytes(_gradients(run.model, batch), device) for name, run in runs.items()},
        "sampling_seconds": time_sampling(shape, device, drawn=False),
        "sampling_drawn_seconds": time_sampling(shape, device, drawn=True),
        "held_out_elbo": {name: held_out_elbo(run.model, images.test, seed) for name, run in runs.items()},
        "loss_difference": {
            "largest": abs(stock[worst] - ours[worst]),
            "relative": abs(stock[worst] - ours[worst]) / abs(stock[worst]),
            "at_step": worst + 1,
        },
    }


def measure_alone(device: torch.device) -> dict[str, Any]:
    """Sampling and KL without a model around them, at `LARGE`: seconds and bytes, each for stock and genmod."""
    calls = {name: _sampling(sampler(), LARGE, device, drawn=True) for name, sampler in SAMPLERS.items()}
    return {
        "alone_device": _device_name(device),
        "alone_shape": LARGE,
        "alone_seconds": time_sampling(LARGE, device, drawn=False),
        "alone_drawn_seconds": time_sampling(LARGE, device, drawn=True),
        "alone_peak_bytes": {name: peak_bytes(call, device) for name, call in calls.items()},
    }


def time_sampling(shape: tuple[int, int], device: torch.device, *, drawn: bool, rounds: int = 15) -> dict[str, float]:
    """Median seconds of one forward and backward of each sampler alone, at latents of this shape, in turns.

    drawn: the noise is drawn inside, as in ordinary training; otherwise it is given.
    """
    calls = {name: _sampling(sampler(), shape, device, drawn) for name, sampler in SAMPLERS.items()}
    times = interleaved(calls, device, rounds=rounds)
    return {name: statistics.median(each) for name, each in times.items()}


def _sampling(sampler: nn.Module, shape: tuple[int, int], device: torch.device, drawn: bool) -> Callable[[], Any]:
    draw = torch.Generator().manual_seed(0)
    params, noise, grad = (torch.randn(shape[0], n * shape[1], generator=draw).to(device) for n in (2, 1, 1))
    params.requires_grad_()
    one = torch.ones((), device=device)
    return lambda: torch.autograd.grad(sampler(params, noise=None if drawn else noise), params, (grad, one))


def _gradients(model: VAE, batch: Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(model(batch).loss, list(model.parameters()))


@torch.no_grad()
def held_out_elbo(model: VAE, images: Tensor, seed: int) -> float:
    """Mean ELBO in nats per image, one latent sample each; the same noise for every model of one size."""
    draw = torch.Generator().manual_seed(seed + 1)
    device = next(model.parameters()).device
    total = 0.0
    for batch in images.split(256):
        noise = torch.randn(len(batch), model.config.latent_dim, generator=draw).to(device)
        total -= model.elbo(batch.to(device), noise=noise).loss.item() * len(batch)
    return total / len(images)


# -------------------------------------------------------------------------------------------------- pictures and words


@torch.no_grad()
def _draw(model: VAE, images: ImageSet, seed: int, folder: Path) -> None:
    from genmod.recipes import pictures

    device = next(model.parameters()).device
    shown = images.test[:16].to(device)
    pictures.save_reconstructions(folder / "reconstructions.png", shown, model.reconstruct(shown))
    pictures.save_samples(folder / "samples.png", model.sample(64, torch.Generator().manual_seed(seed)))
    kl = model.encode(images.test[:512].to(device)).latent_dist.kl(reduction="per_dim")
    order = kl.argsort(descending=True)[:TRAVERSED]
    values = torch.linspace(-3, 3, 13, device=device)
    z = torch.zeros(len(order), len(values), model.config.latent_dim, device=device)
    for row, dim in enumerate(order):
        z[row, :, dim] = values
    grid = model.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])
    pictures.save_traversal(folder / "traversal.png", grid, order.tolist(), kl[order].tolist(), values.tolist())


def _draw_curves(runs: dict[str, Run], folder: Path) -> None:
    from genmod.recipes import pictures

    pictures.save_curves(folder / "loss_curves.png", runs["stock"].losses, runs["genmod"].losses)


def _print(metrics: dict[str, Any], folder: Path, console: Any) -> None:
    count, channels, size, _ = metrics["data"]["shape"]
    batch, latent = metrics["batch"], metrics["model"]["latent_dim"]
    table = _table(
        f"{metrics['data']['name']}: {count} images of {channels} x {size} x {size}, {metrics['data']['held_out']} "
        f"held out; {metrics['steps']} steps of {batch}; {metrics['device']}, genmod's {metrics['backend']} backend"
    )
    _row(table, "training step, median", metrics["step_seconds"], 1e3, "ms")
    _row(table, f"its sampling + KL, [{batch}, {latent}]", metrics["sampling_seconds"], 1e3, "ms")
    _row(table, "  and drawing the noise", metrics["sampling_drawn_seconds"], 1e3, "ms")
    _row(table, "peak memory, forward+backward", metrics["step_peak_bytes"], 2**-20, "MiB")
    elbo, difference = metrics["held_out_elbo"], metrics["loss_difference"]
    table.add_row("held-out ELBO, nats per image", f"{elbo['stock']:,.2f}", f"{elbo['genmod']:,.2f}", "")
    table.add_row("largest loss difference", "", f"{difference['largest']:.2g} nats", "")
    console.print(table)
    share = metrics["sampling_seconds"]["stock"] / metrics["step_seconds"]["stock"]
    words = (
        f"Sampling and KL are {share:.1%} of the stock step; the rest, mostly convolutions, is the same code. That is "
        f"the most that genmod can take off this step: a larger difference in step time is the machine's noise. "
        f"The loss curves differ by at most {difference['relative']:.1e} of the loss, at step {difference['at_step']}."
    )
    console.print(words, highlight=False)
    _say(console, f"Pictures and metrics.json are in {folder}\n")


def _print_alone(alone: dict[str, Any], console: Any) -> None:
    rows, columns = alone["alone_shape"]
    table = _table(
        f"sampling + KL alone, forward + backward, at [{rows}, {columns}]: far larger than in the models above; "
        f"{alone['alone_device']}"
    )
    _row(table, "noise given", alone["alone_seconds"], 1e3, "ms")
    _row(table, "noise drawn inside", alone["alone_drawn_seconds"], 1e3, "ms")
    _row(table, "  its peak memory", alone["alone_peak_bytes"], 2**-20, "MiB")
    console.print(table)


def _table(title: str) -> Any:
    text = need("rich.text").Text
    table = need("rich.table").Table(title=text(title), title_justify="left")
    table.add_column("", min_width=29)
    for heading in ("stock PyTorch", "genmod", "stock/genmod"):
        table.add_column(heading, justify="right")
    return table


def _row(table: Any, label: str, pair: dict[str, float], scale: float, unit: str) -> None:
    text, stock, ours = need("rich.text").Text, pair["stock"], pair["genmod"]
    table.add_row(text(label), f"{stock * scale:,.3f} {unit}", f"{ours * scale:,.3f} {unit}", f"{stock / ours:.2f}x")


def _say(console: Any, line: str) -> None:
    # File names may hold what rich takes for markup or wraps in the middle.
    console.print(line, markup=False, highlight=False, soft_wrap=True)


# --------------------------------------------------------------------------------------------------------------- small


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"wanted a positive number, got {text}")
    return value


def _device(name: str | None) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--device cuda: PyTorch sees no CUDA GPU here; use --device cpu")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
