"""Modules of the `gaussian` family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genmod import layout, ops
from genmod.ops._reductions import REDUCTIONS, Reduction
from genmod.ops.gaussian import CLAMPS, Clamp


class DiagonalGaussian:
    """A batch of diagonal Gaussians from an encoder's `[B, 2C, ...]` output, mean first.

    Has the methods, and returns the values, of diffusers' `DiagonalGaussianDistribution`: log-variance clamped to
    [-30, 20], divergence and likelihood summed per sample. Nothing is computed, and nothing copied, before a method
    asks for it.

    Args:
        params: mean and log-variance along dimension 1, or the mean alone if `logvar` is given.
        logvar: the log-variance, if it is not in `params`.
        deterministic: a point mass at the mean: `sample` returns the mean, `kl` and `nll` are zero.
        clamp: of the log-variance; see :func:`genmod.ops.reparameterize`.
    """

    def __init__(
        self, params: Tensor, logvar: Tensor | None = None, *, deterministic: bool = False, clamp: Clamp = "hard"
    ) -> None:
        self.params, self._logvar = params, logvar
        self.deterministic, self.clamp = deterministic, clamp

    @property
    def mean(self) -> Tensor:
        """Mean, a view of the parameters."""
        return layout.split(self.params, self._logvar)[0]

    @property
    def logvar(self) -> Tensor:
        """Log-variance, after the clamp."""
        return ops.clamp_logvar(layout.split(self.params, self._logvar)[1], clamp=self.clamp)

    @property
    def std(self) -> Tensor:
        """Standard deviation; zero if deterministic."""
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        """Variance; zero if deterministic."""
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:
        """A differentiable sample; see :func:`genmod.ops.reparameterize`."""
        if self.deterministic:
            return self.mean
        return ops.reparameterize(self.params, self._logvar, generator=generator, noise=noise, clamp=self.clamp)

    def mode(self) -> Tensor:
        """The most likely value, which is the mean."""
        return self.mean

    def kl(self, other: DiagonalGaussian | None = None, *, reduction: Reduction = "batch") -> Tensor:
        """Divergence from the standard normal, or from `other`, in nats; `[B]` by default."""
        if self.deterministic:
            return torch.zeros_like(ops.gaussian_kl(self.params, self._logvar, reduction=reduction))
        second = (None, None) if other is None else (other.params, other._logvar)
        return ops.gaussian_kl(self.params, self._logvar, *second, reduction=reduction, clamp=self.clamp)

    def nll(self, x: Tensor, *, reduction: Reduction = "batch") -> Tensor:
        """Negative log-likelihood of `x`, in nats; `[B]` by default."""
        nll = ops.gaussian_nll(self.mean, x, logvar=self.logvar, min_logvar=None, reduction=reduction)
        return torch.zeros_like(nll) if self.deterministic else nll

    def __repr__(self) -> str:
        shape = tuple(self.mean.shape)
        return f"DiagonalGaussian(shape={shape}, deterministic={self.deterministic}, clamp={self.clamp!r})"


class GaussianSampler(nn.Module):
    """The bottleneck of a VAE: a sample of the latent and its divergence from the standard normal, in one pass.

    Args:
        free_bits, reduction, clamp: see :func:`genmod.ops.sample_kl`.
        sample_in_eval: in evaluation mode draw a sample too; if False, return the mean.

    Shape:
        `forward(mean, logvar)` with two `[B, ...]` tensors, or `forward(params)` with one `[B, 2C, ...]`, to `(z, kl)`.
    """

    def __init__(
        self,
        *,
        free_bits: float = 0.0,
        reduction: Reduction = "batchmean",
        clamp: Clamp = "none",
        sample_in_eval: bool = True,
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction: got {reduction!r}, expected one of {REDUCTIONS}")
        if clamp not in CLAMPS:
            raise ValueError(f"clamp: got {clamp!r}, expected one of {CLAMPS}")
        if not free_bits >= 0:
            raise ValueError(f"free_bits: got {free_bits}, expected a number >= 0")
        self.free_bits, self.reduction, self.clamp = free_bits, reduction, clamp
        self.sample_in_eval = sample_in_eval

    def forward(
        self,
        mean: Tensor,
        logvar: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`(z, kl)`; see :func:`genmod.ops.sample_kl`."""
        options: dict[str, Any] = {"free_bits": self.free_bits, "reduction": self.reduction, "clamp": self.clamp}
        if self.training or self.sample_in_eval:
            return ops.sample_kl(mean, logvar, noise=noise, generator=generator, **options)
        return layout.split(mean, logvar)[0], ops.gaussian_kl(mean, logvar, **options)

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"free_bits={self.free_bits}, reduction={self.reduction!r}, clamp={self.clamp!r}"
