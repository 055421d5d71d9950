"""Colourisation: which colours has a picture that is shown in grey?"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmod import ops
from genmod.pretext import ab_bins
from genmod.pretext.heads import ImageHead
from genmod.pretext.lab import lab_to_rgb, rgb_to_lab
from genmod.pretext.task import Draws, Shape, Task, check_samples, number, whole

KINDS = ("classification", "regression")
BINS = 313
AB_SCALE = 110.0  # regression predicts a and b in this unit


@dataclass(frozen=True)
class Colorization(Task):
    r"""The colours of an image from its lightness (Zhang, Isola and Efros, ECCV 2016).

    The input is L / 100, `[B, 1, H, W]`, so the encoder has one channel; the target is the ab plane of Lab, averaged
    over squares of `stride` pixels.

    - "classification": each square's colour is one of 313 (see :mod:`genmod.pretext.ab_bins`), softly: the target is
      spread over the 5 nearest by a Gaussian of sigma 5, and the loss is
      :math:`-\sum_{h,w} v(Z_{hw}) \sum_q Z_{hwq} \log \hat Z_{hwq}`, here as a mean over squares. The weight v of
      the target's nearest bin makes up for most of the world being grey; :meth:`fit` measures it. Chance is the loss of
      a uniform answer, v log 313.
    - "regression": the squared error of ab in units of 110, as a mean; chance is that of answering grey.

    Attributes:
        kind: which of them.
        stride: squares of so many pixels have one colour; a power of two.
        mix: lambda of the weights, see :func:`genmod.pretext.ab_bins.rebalancing_weights`.
        prior: the 313 probabilities that :meth:`fit` measures; without them, all weights are 1.
        temperature: of :meth:`colors`, see :func:`genmod.pretext.ab_bins.annealed_mean`.
    """

    name: ClassVar[str] = "colorization"
    kind: Literal["classification", "regression"] = "classification"
    stride: int = 4
    mix: float = 0.5
    prior: tuple[float, ...] | None = None
    temperature: float = 0.38

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: got {self.kind!r}, expected 'classification' or 'regression'")
        whole("stride", self.stride)
        if self.stride & (self.stride - 1):
            raise ValueError(f"stride: got {self.stride}, expected a power of two")
        number("mix", self.mix, most=1)
        number("temperature", self.temperature, open=True)
        if self.prior is not None:
            prior = tuple(float(p) for p in self.prior)  # JSON makes lists of tuples
            if len(prior) != BINS or min(prior) < 0 or not math.isclose(sum(prior), 1, rel_tol=1e-3):
                raise ValueError(f"prior: got {len(prior)} numbers, expected {BINS} probabilities of sum 1")
            object.__setattr__(self, "prior", prior)

    def fit(self, images: Tensor) -> Colorization:
        """This task with the prior of these images `[N, 3, H, W]`: how often each bin is the nearest, smoothed."""
        counts = torch.zeros(BINS, dtype=torch.float64, device=images.device)
        for batch in images.split(256):
            nearest = ab_bins.soft_encode(self.transform(batch)[1])[0][:, 0].flatten()
            counts += torch.bincount(nearest, minlength=BINS)
        return dataclasses.replace(self, prior=tuple(ab_bins.smooth_prior(counts).tolist()))

    def transform(
        self, x: Tensor, generator: torch.Generator | None = None, *, draws: Draws | None = None
    ) -> tuple[Tensor, Tensor]:
        """sRGB images `[B, 3, H, W]` in [0, 1] to lightness `[B, 1, H, W]`, and ab `[B, 2, H / stride, W / stride]`."""
        check_samples(x, clips=False)
        if x.shape[1] != 3:
            raise ValueError(f"x: got {x.shape[1]} channel(s), expected 3: a grey image has no colours to predict")
        if x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise ValueError(f"x: got {x.shape[2]} x {x.shape[3]} pixels, expected multiples of stride={self.stride}")
        lab = rgb_to_lab(x)
        return (lab[:, :1] / 100).to(x.dtype), F.avg_pool2d(lab[:, 1:], self.stride)

    def view(self, images: Tensor) -> Tensor:
        """The lightness of colour images; images of one channel as they are."""
        return images if images.shape[1] == 1 else rgb_to_lab(images)[:, :1].to(images.dtype) / 100

    def view_channels(self, channels: int) -> int:
        """One."""
        return 1

    def head(self, encoder: Any, shape: Shape) -> nn.Module:
        """Upsampling stages."""
        channels = BINS if self.kind == "classification" else 2
        return ImageHead(encoder.feature_shape, (channels, shape[1] // self.stride, shape[2] // self.stride))

    def predict(self, encoder: Any, head: nn.Module, input: Tensor) -> Tensor:
        """Logits of the bins `[B, 313, h, w]`, or ab / 110 `[B, 2, h, w]`."""
        return head(encoder.features(input))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Weighted cross-entropy, or squared error, of a square."""
        if self.kind == "regression":
            return ops.mse(output, target / AB_SCALE, reduction="mean")
        bins, weights = ab_bins.soft_encode(target)
        # Of 313 logarithms only the five that have a weight are needed.
        logs = output.float().log_softmax(1).gather(1, bins)
        return -(self._rarity(bins[:, 0]) * (weights.to(logs.dtype) * logs).sum(1)).mean()

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        return self.loss(output, target)

    def chance(self, input: Tensor, target: Tensor) -> float:
        """The loss of a uniform distribution, or of grey."""
        channels = BINS if self.kind == "classification" else 2
        return float(self.loss(target.new_zeros(len(target), channels, *target.shape[2:]), target))

    def colors(self, lightness: Tensor, output: Tensor) -> Tensor:
        """An output as sRGB images `[B, 3, H, W]`, with the lightness `[B, 1, H, W]` that was the input."""
        ab = AB_SCALE * output.float()
        if self.kind == "classification":
            ab = ab_bins.annealed_mean(output, self.temperature)
        ab = F.interpolate(ab, size=lightness.shape[2:], mode="bilinear", align_corners=False)
        return lab_to_rgb(torch.cat([100 * lightness.to(ab.dtype), ab], 1))

    def _rarity(self, bins: Tensor) -> Tensor:
        """The weight of each square, from its nearest bin."""
        if self.prior is None:
            return torch.ones_like(bins, dtype=torch.float32)
        prior = torch.tensor(self.prior, device=bins.device)
        return ab_bins.rebalancing_weights(prior, self.mix)[bins]
