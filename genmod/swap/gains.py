"""How much each pattern was measured to gain, by device, dtype and mode.

Medians of interleaved runs against eager PyTorch on the workloads named in docs/swap.md. A pattern that is missing for
a device and dtype was not measured there. Below `WORTH_IT` stock PyTorch is taken to be as fast.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

#: Least gain that a swap is made for.
WORTH_IT = 1.02


class Gain(NamedTuple):
    """Times as fast as eager, in evaluation (forward) and in training (forward and backward)."""

    evaluation: float
    training: float


_CPU_FLOAT32 = {
    "group_norm_act": Gain(1.68, 1.67),
}
MEASURED: dict[tuple[str, torch.dtype], dict[str, Gain]] = {("cpu", torch.float32): _CPU_FLOAT32}


def predicted(pattern: str, device: str, dtype: torch.dtype, training: bool) -> float | None:
    """The measured gain, or None if there is no measurement."""
    gain = MEASURED.get((device, dtype), {}).get(pattern)
    if gain is None:
        return None
    return gain.training if training else gain.evaluation
