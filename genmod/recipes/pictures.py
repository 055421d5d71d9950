"""The pictures of all recipes, as PNG files.

Every image pixel becomes a whole number of screen pixels, so nothing is blurred by resampling. The figures are made
without pyplot: no global state, no display, no backend to choose.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genmod.recipes import need

DPI = 100
TILE = 64  # a picture is drawn at least this wide, in screen pixels
GAP = 4  # screen pixels between pictures
INK, MUTED, STOCK, GENMOD = "#222222", "#777777", "#e0953a", "#1f5fa8"


def save_reconstructions(path: Path, originals: Tensor, reconstructions: Tensor, columns: int = 8) -> None:
    """Both [N, C, H, W] in [0, 1]: rows of originals, each with its reconstructions underneath."""
    pairs = zip(originals.split(columns), reconstructions.split(columns), strict=True)
    rows = [_pad(row, columns) for pair in pairs for row in pair]
    labels = ["original", "reconstructed"] * (len(rows) // 2)
    save_grid(path, torch.stack(rows), "Held-out images and their reconstructions", labels=labels, pairs=True)


def save_samples(path: Path, images: Tensor, columns: int = 8) -> None:
    """[N, C, H, W] in [0, 1], drawn from the prior."""
    rows = [_pad(row, columns) for row in images.split(columns)]
    save_grid(path, torch.stack(rows), "Samples from the prior: z ~ N(0, I), decoded")


def save_images(path: Path, images: Tensor, title: str, columns: int = 8) -> None:
    """Any [N, C, H, W], or the first images of clips [N, T, C, H, W]: at most 64, what is outside [0, 1] cut off."""
    shown = torch.nan_to_num(images[:64, 0] if images.dim() == 5 else images[:64])
    rows = [_pad(row, columns) for row in shown.split(columns)]
    save_grid(path, torch.stack(rows), title)


def save_traversal(
    path: Path, grid: Tensor, dims: list[int], amounts: list[float], values: list[float], unit: str = "nats"
) -> None:
    """grid [rows, columns, C, H, W]: row r moves latent dims[r], which carries amounts[r], through `values`."""
    labels = [f"z{dim}   {amount:.2f} {unit}" for dim, amount in zip(dims, amounts, strict=True)]
    title = "The prior mean with one latent moved at a time: those with the largest KL on held-out images"
    if unit != "nats":
        title = "The mean code with one latent moved at a time, by its standard deviations on held-out images"
    save_grid(path, grid, title, labels=labels, columns=[f"{value:+.1f}" for value in values])


def save_curves(path: Path, stock: list[float], genmod: list[float]) -> None:
    """The two loss curves (nats per image, one value for each step) over each other, and their difference."""
    figure = need("matplotlib.figure").Figure(figsize=(9, 6), dpi=DPI, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    steps = np.arange(1, len(stock) + 1)
    top.plot(steps, genmod, color=MUTED, linewidth=0.5, alpha=0.5, label="each step")
    for losses, name, color, width in ((stock, "stock PyTorch", STOCK, 5), (genmod, "genmod", GENMOD, 1.5)):
        top.plot(*_smooth(losses), color=color, linewidth=width, label=f"{name}, mean of {_window(losses)} steps")
    # The first steps are far above the rest and would flatten the curve.
    late = np.array(stock[len(stock) // 20 :])
    margin = 0.08 * (late.max() - late.min()) + 1e-3
    top.set_ylim(late.min() - margin, late.max() + margin)
    top.set_ylabel("loss, nats per image")
    top.set_title("Negative ELBO in training: same weights, batches and noise", loc="left", color=INK)
    top.legend(frameon=False, loc="upper right")
    gap = np.abs(np.subtract(stock, genmod))
    # Equal losses have no place on a logarithmic axis: they are left out.
    bottom.semilogy(steps, np.where(gap > 0, gap, np.nan), ".", color=INK, markersize=3)
    spacing = np.spacing(np.array(stock, np.float32))
    bottom.semilogy(steps, spacing, color=GENMOD, linewidth=1, label="one float32 step of the loss")
    bottom.legend(frameon=False)
    bottom.set_ylabel("|stock - genmod|, nats")
    bottom.set_xlabel("training step")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path)


def save_map(path: Path, points: Tensor, labels: Tensor | None, classes: tuple[str, ...], title: str) -> None:
    """points [N, 2] in the plane, coloured by labels [N] where there are some; `classes` are the labels' names."""
    figure = need("matplotlib.figure").Figure(figsize=(8, 7), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    if labels is None:
        axes.scatter(*points.T.numpy(), s=14, color=GENMOD, linewidths=0)
    else:
        colors = need("matplotlib").colormaps["tab10" if len(classes) <= 10 else "tab20"]
        for number, name in enumerate(classes):
            axes.scatter(*points[labels == number].T.numpy(), s=14, color=colors(number % 20), linewidths=0, label=name)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title(title, loc="left", color=INK)
    axes.set_aspect("equal", "datalim")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def save_losses(path: Path, curve: dict[str, list[float]], title: str) -> None:
    """The loss of every step, one panel for each phase, with its moving average."""
    figure = need("matplotlib.figure").Figure(figsize=(9, 3 * len(curve)), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(curve), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (phase, losses) in zip(panels, curve.items(), strict=True):
        axes.plot(np.arange(1, len(losses) + 1), losses, color=MUTED, linewidth=0.5, alpha=0.5, label="each step")
        axes.plot(*_smooth(losses), color=GENMOD, linewidth=1.5, label=f"mean of {_window(losses)} steps")
        # The first steps can be far from the rest and would flatten the curve.
        low, high = np.quantile(losses[len(losses) // 20 :], [0, 1])
        axes.set_ylim(low - 0.08 * (high - low) - 1e-3, high + 0.08 * (high - low) + 1e-3)
        axes.set_ylabel(f"{phase} loss")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    panels[0].set_title(title, loc="left", color=INK)
    panels[0].legend(frameon=False, loc="upper right")
    panels[-1].set_xlabel("training step")
    figure.savefig(path)


def _window(losses: list[float]) -> int:
    return max(1, len(losses) // 40)


def _smooth(losses: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """The moving average, and the steps in the middle of its windows."""
    window = _window(losses)
    means = np.convolve(losses, np.full(window, 1 / window), "valid")
    return np.arange(len(means)) + (window + 1) / 2, means


def _pad(row: Tensor, columns: int) -> Tensor:
    """White pictures where the last row has too few."""
    missing = columns - len(row)
    return torch.cat([row, row.new_ones(missing, *row.shape[1:])])


def save_grid(
    path: Path,
    grid: Tensor,
    title: str,
    labels: list[str] | None = None,
    columns: list[str] | None = None,
    pairs: bool = False,
) -> None:
    """grid [rows, columns, C, H, W] on white, with row labels at the left and column labels underneath.

    pairs: rows belong together two by two, with more space after each pair.
    """
    mosaic, tops = _mosaic(grid, pairs)
    left, top, bottom, edge = (130 if labels else 16), 44, (30 if columns else 16), 16
    width, height = left + mosaic.shape[1] + edge, top + mosaic.shape[0] + bottom
    figure = need("matplotlib.figure").Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    box = (left / width, bottom / height, mosaic.shape[1] / width, mosaic.shape[0] / height)
    axes = figure.add_axes(box)
    axes.imshow(mosaic, interpolation="none")
    axes.set_axis_off()
    figure.text(16 / width, 1 - 26 / height, title, fontsize=12, color=INK, va="baseline")
    tile = _tile(grid)
    for label, y in zip(labels or [], tops, strict=False):
        _label(figure, (left - 10) / width, 1 - (top + y + tile / 2) / height, label, ha="right", va="center")
    for i, label in enumerate(columns or []):
        _label(figure, (left + i * (tile + GAP) + tile / 2) / width, 18 / height, label, ha="center", va="center")
    figure.savefig(path)


def _label(figure: Any, x: float, y: float, text: str, **align: str) -> None:
    figure.text(x, y, text, fontsize=9, color=MUTED, **align)


def _tile(grid: Tensor) -> int:
    size = grid.shape[-1]
    return size * max(1, -(-TILE // size))


def _mosaic(grid: Tensor, pairs: bool) -> tuple[np.ndarray, list[int]]:
    """The pictures on white, enlarged by a whole factor: [height, width, 3], and the top of each row."""
    rows, columns, channels, size, _ = grid.shape
    tile = _tile(grid)
    pixels = grid.detach().float().cpu().clamp(0, 1).expand(-1, -1, 3, -1, -1) if channels == 1 else grid.detach().cpu()
    pixels = pixels.permute(0, 1, 3, 4, 2).repeat_interleave(tile // size, 2).repeat_interleave(tile // size, 3)
    tops = [row * (tile + GAP) + (row // 2 * 3 * GAP if pairs else 0) for row in range(rows)]
    mosaic = np.ones((tops[-1] + tile, columns * (tile + GAP) - GAP, 3), np.float32)
    for row, y in enumerate(tops):
        for column in range(columns):
            x = column * (tile + GAP)
            mosaic[y : y + tile, x : x + tile] = pixels[row, column].clamp(0, 1).numpy()
    return mosaic, tops
