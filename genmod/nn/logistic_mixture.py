"""Modules of the `logistic_mixture` family."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from genmod import ops
from genmod.ops._reductions import REDUCTIONS, Reduction


class LogisticMixture(nn.Module):
    """The likelihood of PixelCNN++: scores images under a decoder's output, and draws images from it.

    Args:
        components: how many logistic distributions are mixed in each pixel.
        channels: 3 (RGB) or 1.
        bins, min_log_scale, reduction: see :func:`genmod.ops.logistic_mixture_nll`.

    Attributes:
        parameters_per_pixel: how many channels the decoder's output must have.

    Shape:
        `forward(output, target)` with `[B, parameters_per_pixel, H, W]` and `[B, channels, H, W]` in [-1, 1]; by
        default to `[B]`, which is what :class:`genmod.nn.ELBO` takes.
    """

    def __init__(
        self,
        components: int = 10,
        *,
        channels: int = 3,
        bins: int = 256,
        min_log_scale: float = -7.0,
        reduction: Reduction = "batch",
    ) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"components: got {components}, expected at least 1")
        if channels not in (1, 3):
            raise ValueError(f"channels: got {channels}, expected 1 or 3")
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction: got {reduction!r}, expected one of {REDUCTIONS}")
        self.components, self.channels, self.bins = components, channels, bins
        self.min_log_scale, self.reduction = min_log_scale, reduction
        self.parameters_per_pixel = components * (10 if channels == 3 else 3)

    def forward(
        self, output: Tensor, target: Tensor, *, weight: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The negative log-likelihood, in nats; see :func:`genmod.ops.logistic_mixture_nll`."""
        self._check(output)
        return ops.logistic_mixture_nll(
            output,
            target,
            weight=weight,
            mask=mask,
            reduction=self.reduction,
            bins=self.bins,
            min_log_scale=self.min_log_scale,
        )

    def sample(self, output: Tensor, **options: Any) -> Tensor:
        """Images drawn from the mixture; options as in :func:`genmod.ops.logistic_mixture_sample`."""
        self._check(output)
        shared: dict[str, Any] = {"channels": self.channels, "bins": self.bins, "min_log_scale": self.min_log_scale}
        return ops.logistic_mixture_sample(output, **{**shared, **options})

    def _check(self, output: Tensor) -> None:
        # The op would take any multiple of 10 or 3 for a number of components.
        if output.dim() == 4 and output.shape[1] != self.parameters_per_pixel:
            raise ValueError(
                f"output: got {output.shape[1]} channels, expected {self.parameters_per_pixel} for {self.components} "
                f"components of {self.channels} channel(s)"
            )

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"components={self.components}, channels={self.channels}, bins={self.bins}, reduction={self.reduction!r}"
