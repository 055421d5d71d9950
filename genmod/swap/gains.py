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
    "group_norm_act": Gain(1.56, 1.91),  # [8, 256, 64, 64], nobody's memory from the system; docs/measured.md, as all
    "batch_norm_act": Gain(None, 1.58),  # [64, 512, 4, 4]
    "upsample_conv": Gain(2.51, 2.39),  # [16, 512, 4, 4] to 256 channels
    "conv3x3": Gain(1.55, 1.34),  # [1, 128, 64, 64] to 128 channels
    "diffusers_upsample": Gain(1.74, 1.75),  # [1, 64, 8, 8] to 32 channels
    "diffusers_decoder": Gain(1.68, 1.63),  # of the whole decoder, all swaps together
    "bce_with_logits_loss": Gain(None, 6.08),  # [256, 3, 64, 64]
    "l1_loss": Gain(1.54, 1.58),  # [128, 784]
}
MEASURED: dict[tuple[str, torch.dtype], dict[str, Gain]] = {("cpu", torch.float32): _CPU_FLOAT32}


def predicted(pattern: str, device: str, dtype: torch.dtype, training: bool) -> float | None:
    """The measured gain, or None if there is no measurement."""
    gain = MEASURED.get((device, dtype), {}).get(pattern)
    if gain is None:
        return None
    return gain.training if training else gain.evaluation
