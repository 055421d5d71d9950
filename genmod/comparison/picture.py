"""A comparison as a picture: times as bars, and for image models the two images with their difference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from genmod.comparison.result import Comparison

_COLOURS = {"stock": "#e0953a", "compile": "#8c8c8c", "genmod": "#1f5fa8"}
_INK = "#222222"


def save(comparison: Comparison, path: str | Path) -> None:
    """Draw the picture to a file; its ending says the format.

    Made without pyplot: no global state, no display, no backend to choose.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: there is nothing to draw: neither times nor images.
    """
    if not comparison.speeds and comparison.images is None:
        raise ValueError("comparison: got one without times and images, expected either")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plot needs matplotlib; install it with: pip install 'genmod-torch[bench]'"
        ) from error
    rows = (comparison.speeds != ()) + (comparison.images is not None)
    figure = Figure(figsize=(9, 3.2 * rows + 0.4), dpi=100, layout="constrained", facecolor="white")
    figure.suptitle(f"{comparison.model}, {comparison.device}, {comparison.dtype}", color=_INK)
    parts: list[Any] = list(figure.subfigures(rows, 1, squeeze=False)[:, 0])
    if comparison.speeds:
        _bars(parts.pop(0), comparison)
    if comparison.images is not None:
        _images(parts.pop(0), *comparison.images)
    figure.savefig(path)


def _bars(figure: Any, comparison: Comparison) -> None:
    time, memory = figure.subplots(1, 2)
    modes = list(dict.fromkeys(s.mode for s in comparison.speeds))
    contenders = list(dict.fromkeys(s.contender for s in comparison.speeds))
    height = 0.8 / len(contenders)
    for i, contender in enumerate(contenders):
        of_it = [s for s in comparison.speeds if s.contender == contender]
        places = [modes.index(s.mode) + i * height for s in of_it]
        for axes, values in ((time, [s.seconds * 1e3 for s in of_it]), (memory, [s.peak_bytes / 2**20 for s in of_it])):
            bars = axes.barh(places, values, height * 0.9, label=contender, color=_COLOURS[contender])
            ratios = [s.time_ratio if axes is time else s.memory_ratio for s in of_it]
            axes.bar_label(bars, [f"{value:.3g}  ({ratio:.2f}x)" for value, ratio in zip(values, ratios)], padding=3)
    for axes, label in ((time, "milliseconds"), (memory, "peak memory, MiB")):
        axes.set_yticks([k + height * (len(contenders) - 1) / 2 for k in range(len(modes))], modes)
        axes.invert_yaxis()
        axes.margins(x=0.6)  # room for the numbers
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    time.legend(frameon=False, loc="best")


def _images(figure: Any, stock: Tensor, fast: Tensor) -> None:
    """Both on the scale of the first; the difference on its own, with the largest in the title."""
    low, high = stock.min(), stock.max()
    span = (high - low).clamp_min(1e-12)
    gap = (stock - fast).abs().amax(0)
    shown = [((image - low) / span).clamp(0, 1).permute(1, 2, 0) for image in (stock, fast)]
    titles = "stock", "genmod", f"|difference|, at most {float(gap.max()):.1e}"
    images = [image.numpy() for image in (*shown, gap)]
    for axes, title, image in zip(figure.subplots(1, 3), titles, images, strict=True):
        grey = image.ndim == 2 or image.shape[-1] == 1
        axes.imshow(
            image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray" if grey else None, interpolation="none"
        )
        axes.set_title(title, fontsize=10, color=_INK)
        axes.set_axis_off()
