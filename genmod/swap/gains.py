"""How much each pattern was measured to gain, by device, dtype and mode.

Times of eager PyTorch over genmod's, as medians of interleaved runs with two threads and AVX-512. A pattern that is
missing for a device and dtype was not measured there by itself. Below `WORTH_IT` stock PyTorch is taken to be as fast.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

#: Least gain that a swap is made for.
WORTH_IT = 1.02


class Gain(NamedTuple):
    """Times as fast as eager, in evaluation (forward) and in training (forward and backward); None: not measured."""

    evaluation: float | None
    training: float | None


_CPU_FLOAT32 = {
    "group_norm_act": Gain(1.68, 1.67),  # [8, 256, 64, 64]; docs/measured.md
    "upsample_conv": Gain(2.54, 3.32),  # [16, 512, 4, 4] to 256 channels; genmod/ops/upsample_conv.py
    "diffusers_upsample": Gain(2.20, 1.70),  # [1, 64, 8, 8] to 32 channels; the same table
    "diffusers_decoder": Gain(1.40, 1.31),  # of the whole decoder, all swaps together; docs/swap.md
    "bce_with_logits_loss": Gain(None, 2.66),  # [256, 3, 64, 64]; docs/measured.md
}
MEASURED: dict[tuple[str, torch.dtype], dict[str, Gain]] = {("cpu", torch.float32): _CPU_FLOAT32}


def predicted(pattern: str, device: str, dtype: torch.dtype, training: bool) -> float | None:
    """The measured gain, or None if there is no measurement."""
    gain = MEASURED.get((device, dtype), {}).get(pattern)
    if gain is None:
        return None
    return gain.training if training else gain.evaluation
