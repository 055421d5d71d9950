"""How a decoder's raw output becomes a distribution of an image with values in [0, 1]."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from genmod.nn import LogisticMixture, ReconstructionLoss
from genmod.ops import _checks

Kind = Literal["bernoulli", "gaussian", "discretized_logistic", "logistic_mixture"]
KINDS = ("bernoulli", "gaussian", "discretized_logistic", "logistic_mixture")


class PixelLikelihood(nn.Module):
    r"""The distribution of pixels, scored by the fused losses of `genmod.nn`.

    ====================  ==================================================  ========================================
    kind                  distribution of a pixel                             channels of the output
    ====================  ==================================================  ========================================
    bernoulli             mean of `trials` Bernoulli trials, from a logit     C
    gaussian              normal with standard deviation `sigma`              C
    discretized_logistic  logistic, integrated over one of `bins` greys       2 C: mean, log-scale
    logistic_mixture      PixelCNN++'s mixture of such, channels in turn      `components` times 10 (RGB) or 3 (grey)
    ====================  ==================================================  ========================================

    Args:
        kind: see the table.
        channels: of the image.
        trials, sigma, bins, components: of one kind each.

    Shape:
        `forward(output, images)` with images `[B, C, H, W]` in [0, 1]: the negative log-likelihood in nats, `[B]`.
        For "bernoulli" without the binomial coefficients, which depend on the images alone.
    """

    def __init__(
        self,
        kind: Kind = "bernoulli",
        channels: int = 3,
        *,
        trials: int = 1,
        sigma: float = 0.1,
        bins: int = 256,
        components: int = 5,
    ) -> None:
        super().__init__()
        _checks.choice("likelihood", kind, KINDS)
        self.kind, self.channels, self.trials = kind, channels, trials
        self.loss: nn.Module
        if kind == "logistic_mixture":
            self.loss = LogisticMixture(components, channels=channels, bins=bins)
            self.output_channels = self.loss.parameters_per_pixel
            return
        options: dict[str, float] = {"gaussian": {"sigma": sigma}, "discretized_logistic": {"bins": bins}}.get(kind, {})
        self.loss = ReconstructionLoss(kind, reduction="batch", **options)
        self.output_channels = 2 * channels if kind == "discretized_logistic" else channels

    def forward(self, output: Tensor, images: Tensor) -> Tensor:
        """See the class."""
        if self.kind in ("discretized_logistic", "logistic_mixture"):
            images = 2 * images - 1  # the range in which bins are counted
        nll = self.loss(output, images)
        return nll if self.kind != "bernoulli" or self.trials == 1 else self.trials * nll

    def mean(self, output: Tensor) -> Tensor:
        """The expected image, `[B, C, H, W]` in [0, 1]; differentiable."""
        if self.kind == "bernoulli":
            return torch.sigmoid(output)
        if self.kind == "gaussian":
            return output.clamp(0, 1)
        mean = output[:, : self.channels] if self.kind == "discretized_logistic" else self._mixture_mean(output)
        return ((mean + 1) / 2).clamp(0, 1)

    def _mixture_mean(self, output: Tensor) -> Tensor:
        count = output.shape[1] // (10 if self.channels == 3 else 3)
        weights = output[:, :count].softmax(1).unsqueeze(1)
        rest = output[:, count:].unflatten(1, (self.channels, -1, count))
        means = rest[:, :, 0]
        if self.channels == 3:  # each channel's mean is shifted by those before it
            c = rest[:, :, 2].tanh()
            red = means[:, 0]
            green = means[:, 1] + c[:, 0] * red
            means = torch.stack((red, green, means[:, 2] + c[:, 1] * red + c[:, 2] * green), 1)
        return (weights * means).sum(2)

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"{self.kind!r}, channels={self.channels}"
