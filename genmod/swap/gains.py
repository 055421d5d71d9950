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
    "upsample_conv_act": Gain(4.61, 2.69),  # [16, 128, 16, 16] to 128
    "conv_bn_act": Gain(1.31, 1.21),  # [32, 64, 32, 32] to 128, 4x4 with stride 2
    "conv_bn": Gain(1.61, 1.26),  # [16, 64, 32, 32] to 64, 3x3
    "conv_transpose_bn_act": Gain(1.33, 1.36),  # [32, 256, 8, 8] to 128
    "bias_act": Gain(1.41, None),  # [16, 3, 64, 64] to 64 channels
    "linear_act": Gain(0.98, None),  # [4096, 512] to 512, 0.95 of 64 rows; in loops, one after the other
    "conv3x3": Gain(1.55, 1.34),  # [1, 128, 64, 64] to 128 channels
    "conv4x4": Gain(1.32, 1.33),  # [32, 64, 32, 32] to 128 channels
    "conv_transpose4x4": Gain(1.51, 1.37),  # [32, 256, 8, 8] to 128
    "critic_conv2d": Gain(None, 1.56),  # of DCGAN-64 with R1, generator and critic, all layers together
    "critic_leaky_relu": Gain(None, 1.56),
    "critic_relu": Gain(None, 1.56),
    "diffusers_upsample": Gain(1.74, 1.75),  # [1, 64, 8, 8] to 32 channels
    "diffusers_resnet": Gain(1.64, None),  # [1, 64, 64, 64]; trained 1.01 there, as much as its layers at larger ones
    "diffusers_attention": Gain(1.04, None),  # [1, 128, 32, 32]
    "diffusers_decoder": Gain(1.68, 1.63),  # of the whole decoder, all swaps together
    "diffusers_encoder": Gain(1.32, 1.12),  # [1, 3, 128, 128], a quarter of the width, all swaps together
    "diffusers_unet2d": Gain(1.19, 1.09),  # [4, 3, 32, 32], 64 and 128 channels, all swaps together
    "bce_with_logits_loss": Gain(None, 6.08),  # [256, 3, 64, 64]
    "mse_loss": Gain(1.31, 1.29),  # [128, 3, 32, 32]
    "l1_loss": Gain(1.54, 1.58),  # [128, 784]
    "pythae_vae_loss": Gain(1.53, 1.17),  # [128, 3, 32, 32], 64 latent dimensions
    "pythae_betavae_loss": Gain(1.53, 1.20),
    "pythae_ae_loss": Gain(1.29, 1.25),
}
MEASURED: dict[tuple[str, torch.dtype], dict[str, Gain]] = {("cpu", torch.float32): _CPU_FLOAT32}


def predicted(pattern: str, device: str, dtype: torch.dtype, training: bool) -> float | None:
    """The measured gain, or None if there is no measurement."""
    gain = MEASURED.get((device, dtype), {}).get(pattern)
    if gain is None:
        return None
    return gain.training if training else gain.evaluation
