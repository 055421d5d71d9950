"""The result of `genmod.compare`, as a table, JSON or a picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from torch import Tensor

#: A relative error that rounding alone may leave, by dtype: the allowance where stock torch happens to be exact.
FLOOR = {"float64": 1e-10, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
#: How much larger than stock torch's the error may be.
FACTOR = 2.0


@dataclasses.dataclass(frozen=True)
class Difference:
    """The error of one tensor, stock torch's beside it; both against the reference.

    Attributes:
        kind: "output", "input gradient", "parameter gradient" or "buffer".
        name: its path in the output or the inputs, or the parameter's or buffer's name.
        largest_stock, largest: the largest error of an element.
        relative_stock, relative: the norm of the error over the norm of the reference.
        bit_equal: whether accelerated and original have the same bits.
        scale: the largest magnitude in the references of that kind, for errors of what should be zero.
        missing: "" or why the two cannot be compared.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    largest_stock: float
    largest: float
    relative_stock: float
    relative: float
    bit_equal: bool
    scale: float
    missing: str = ""

    def within(self, dtype: str) -> bool:
        """Whether the error is at most twice stock torch's, or no more than rounding leaves in that dtype."""
        return not self.missing and self.largest <= FACTOR * self.largest_stock + FLOOR.get(dtype, 1e-5) * self.scale


@dataclasses.dataclass(frozen=True)
class Speed:
    """Median time and peak memory of one contender ("stock", "compile", "genmod") in one mode.

    Attributes:
        mode: "forward" or "forward+backward".
        spread: the interquartile range of the time over its median.
        peak_bytes: the most that the allocator held during the call, beyond what it held before.
        time_ratio, memory_ratio: of this contender over genmod: above 1, genmod is better.
    """

    mode: str
    contender: str
    seconds: float
    spread: float
    peak_bytes: int
    time_ratio: float
    memory_ratio: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What :func:`genmod.compare` found. Prints as a table.

    Attributes:
        model, inputs, device, dtype, mode: what was compared; `mode` is "training" or "evaluation".
        reference: the dtype of the run that errors are against.
        differences: one for each output, input gradient, parameter gradient and buffer that the run changed.
        speeds: one for each contender and mode.
        random: whether the model drew noise, which was then the same for all.
        compile_error: why there is no "compile", or None.
        swaps: the report of `genmod.accelerate`, or None where the accelerated model was given.
        versions: of torch, genmod and the threads used.
        images: the first image that each model made, `[C, H, W]`, or None if the outputs are no images.
    """

    model: str
    inputs: tuple[str, ...]
    device: str
    dtype: str
    mode: str
    reference: str
    differences: tuple[Difference, ...]
    speeds: tuple[Speed, ...]
    random: bool
    compile_error: str | None
    swaps: Any
    versions: dict[str, Any]
    images: tuple[Tensor, Tensor] | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def outside(self) -> tuple[Difference, ...]:
        """Those whose error is more than twice stock torch's and more than rounding leaves: not the same model."""
        return tuple(d for d in self.differences if not d.within(self.dtype))

    @property
    def equal(self) -> bool:
        """Whether there are none outside the bound."""
        return not self.outside

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images, of plain types."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("images", "swaps")}
        fields["differences"] = [dataclasses.asdict(d) | {"within": d.within(self.dtype)} for d in self.differences]
        fields["speeds"] = [dataclasses.asdict(s) for s in self.speeds]
        fields["swaps"] = self.swaps.to_dict() if hasattr(self.swaps, "to_dict") else None
        return fields | {"equal": self.equal}

    def to_json(self, path: str | Path) -> None:
        """Write `to_dict()`; what is not finite becomes null."""
        text = json.dumps(_finite(self.to_dict()), indent=2, allow_nan=False)
        Path(path).write_text(text + "\n")

    def plot(self, path: str | Path) -> None:
        """Draw the times, and for image models both images with their difference; see `genmod.comparison.picture`."""
        from genmod.comparison.picture import save

        save(self, path)

    def __str__(self) -> str:
        from genmod.comparison.table import render

        return render(self)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
