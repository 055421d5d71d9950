"""Modules of the `aggregate` family.

With a `process_group` they are of the batch that its processes hold together, in equal parts: every process gets the
value for the whole batch, and gradients as `DistributedDataParallel` wants them (see `genmod.nn.distributed`). Only
O(BD) is sent; every process computes the pairs of its own rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor, nn

from genmod import ops
from genmod.nn import distributed
from genmod.ops import aggregate
from genmod.ops.aggregate import SCALES, DIPKind, Estimator, Kernel


class TotalCorrelation(nn.Module):
    """Mutual information, total correlation and dimension-wise KL; see :func:`genmod.ops.total_correlation`.

    Args:
        dataset_size, estimator: as there; the dataset is that of all processes.
        process_group: the processes that hold the batch together; this one alone if omitted.

    Shape:
        `forward(z, mean, logvar)` with three `[B, D]` tensors to three scalars.
    """

    def __init__(
        self, dataset_size: int, *, estimator: Estimator = "mss", process_group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__()
        aggregate.check_dataset_size(dataset_size)
        aggregate.check_estimator(estimator)
        self.dataset_size, self.estimator, self.process_group = dataset_size, estimator, process_group

    def forward(self, z: Tensor, mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(mutual_information, total_correlation, dimension_kl)`."""
        group = self.process_group
        if group is None:
            return ops.total_correlation(z, mean, logvar, dataset_size=self.dataset_size, estimator=self.estimator)
        aggregate.check_posterior(z, mean, logvar)
        first = distributed.first_row("z", z, group)
        everyone = z.shape[0] * dist.get_world_size(group)
        aggregate.check_batch(everyone, self.dataset_size, self.estimator)
        share = aggregate.total_correlation_rows(
            z,
            distributed.gather(mean, group),
            distributed.gather(logvar, group),
            first,
            dataset_size=self.dataset_size,
            estimator=self.estimator,
        )
        mutual_information, correlation, dimension_kl = (distributed.sum_over(t, group) for t in share)
        return mutual_information, correlation, dimension_kl

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"dataset_size={self.dataset_size}, estimator={self.estimator!r}"


class BetaTCVAELoss(nn.Module):
    """Reconstruction + alpha · mutual information + beta · total correlation + gamma · dimension-wise KL.

    With alpha = beta = gamma = 1 it is the negative ELBO, its KL estimated from the sample.

    Args:
        dataset_size, estimator, process_group: see :class:`TotalCorrelation`.
        alpha, beta, gamma: the factors; the paper varies beta alone.

    Shape:
        `forward(reconstruction, z, mean, logvar)` to `(loss, parts)`: the reconstruction loss in nats per sample,
        averaged over the batch (this process's, if there are several), and three `[B, D]` tensors to a scalar, and the
        four detached parts by name.

    Source: Chen et al., *Isolating sources of disentanglement in variational autoencoders*, NeurIPS 2018.
    """

    def __init__(
        self,
        dataset_size: int,
        alpha: float = 1.0,
        beta: float = 6.0,
        gamma: float = 1.0,
        *,
        estimator: Estimator = "mss",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.terms = TotalCorrelation(dataset_size, estimator=estimator, process_group=process_group)

    def forward(
        self, reconstruction: Tensor, z: Tensor, mean: Tensor, logvar: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its parts before the factors."""
        mutual_information, correlation, dimension_kl = self.terms(z, mean, logvar)
        loss = reconstruction + self.alpha * mutual_information + self.beta * correlation + self.gamma * dimension_kl
        parts = {
            "reconstruction": reconstruction.detach(),
            "mutual_information": mutual_information.detach(),
            "total_correlation": correlation.detach(),
            "dimension_kl": dimension_kl.detach(),
        }
        return loss, parts

    def extra_repr(self) -> str:
        """The factors, for `repr`."""
        return f"alpha={self.alpha}, beta={self.beta}, gamma={self.gamma}"


class MMD(nn.Module):
    """Squared maximum mean discrepancy of two samples; see :func:`genmod.ops.mmd`.

    Args:
        kernel, scales, unbiased: as there.
        process_group: the processes that hold both samples together; this one alone if omitted.

    Shape:
        `forward(x, y)` with `[n, D]` and `[m, D]` to a scalar.
    """

    def __init__(
        self,
        *,
        kernel: Kernel = "imq",
        scales: Sequence[float] = SCALES,
        unbiased: bool = True,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        aggregate.check_kernel(kernel, scales)
        self.kernel, self.scales, self.unbiased, self.process_group = kernel, tuple(scales), unbiased, process_group

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The squared discrepancy."""
        group = self.process_group
        if group is None:
            return ops.mmd(x, y, kernel=self.kernel, scales=self.scales, unbiased=self.unbiased)
        aggregate.check_samples(x, y, self.unbiased, dist.get_world_size(group))
        first_x, first_y = distributed.first_row("x", x, group), distributed.first_row("y", y, group)
        share = aggregate.mmd_rows(
            x,
            y,
            distributed.gather(x, group),
            distributed.gather(y, group),
            first_x,
            first_y,
            kernel=self.kernel,
            scales=self.scales,
            unbiased=self.unbiased,
        )
        return distributed.sum_over(share, group)

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"kernel={self.kernel!r}, scales={self.scales}, unbiased={self.unbiased}"


class DIP(nn.Module):
    """The covariance penalty of DIP-VAE; see :func:`genmod.ops.dip`.

    Args:
        kind, lambda_od, lambda_d: as there.
        process_group: the processes that hold the batch together; this one alone if omitted.

    Shape:
        `forward(mean, logvar)` with two `[B, D]` tensors to a scalar; "i" needs the first only.
    """

    def __init__(
        self,
        *,
        kind: DIPKind = "i",
        lambda_od: float = 10.0,
        lambda_d: float | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        aggregate.check_dip(kind, lambda_od, lambda_d)
        self.kind, self.lambda_od, self.lambda_d, self.process_group = kind, lambda_od, lambda_d, process_group

    def forward(self, mean: Tensor, logvar: Tensor | None = None) -> Tensor:
        """The penalty."""
        group = self.process_group
        if group is None:
            return ops.dip(mean, logvar, kind=self.kind, lambda_od=self.lambda_od, lambda_d=self.lambda_d)
        aggregate.check_moments(mean, logvar, self.kind)
        distributed.first_row("mean", mean, group)
        return aggregate.dip_over(
            mean,
            logvar,
            mean.shape[0] * dist.get_world_size(group),
            lambda t: distributed.sum_over(t, group),
            kind=self.kind,
            lambda_od=self.lambda_od,
            lambda_d=self.lambda_d,
        )

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"kind={self.kind!r}, lambda_od={self.lambda_od}, lambda_d={self.lambda_d}"
