"""Modules of the `adversarial` family."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genmod import ops
from genmod.ops.adversarial import KINDS, REDUCTIONS, Kind, Reduction


class _AdversarialLoss(nn.Module):
    """A kind of loss and how it is reduced."""

    def __init__(self, kind: Kind = "non_saturating", *, reduction: Reduction = "mean") -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind: got {kind!r}, expected one of {KINDS}")
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction: got {reduction!r}, expected one of {REDUCTIONS}")
        self.kind, self.reduction = kind, reduction

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"{self.kind!r}, reduction={self.reduction!r}"


class CriticLoss(_AdversarialLoss):
    """What a critic minimises; see :func:`genmod.ops.critic_loss` for the kinds.

    Shape:
        `forward(real=..., fake=...)`, logits of any shape, to a 0-d tensor.
    """

    def forward(self, *, real: Tensor, fake: Tensor) -> Tensor:
        """See :func:`genmod.ops.critic_loss`."""
        return ops.critic_loss(real=real, fake=fake, kind=self.kind, reduction=self.reduction)


class GeneratorLoss(_AdversarialLoss):
    """What a generator minimises; see :func:`genmod.ops.generator_loss` for the kinds.

    Shape:
        `forward(fake=...)`, logits of any shape, to a 0-d tensor; "relativistic" takes `real=...` too.
    """

    def forward(self, *, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """See :func:`genmod.ops.generator_loss`."""
        return ops.generator_loss(fake=fake, real=real, kind=self.kind, reduction=self.reduction)


class LeCam(nn.Module):
    """LeCam regularisation (see :func:`genmod.ops.lecam`) with the moving averages that it needs.

    In training mode each call first moves the averages towards the means of the logits given: the first call sets them,
    later ones keep `decay` of what they were. An empty batch moves nothing. Averages are float32 buffers of the
    process's own batches.

    Args:
        decay: of the moving averages, in [0, 1).

    Shape:
        `forward(real=..., fake=...)`, logits of any shape, to a 0-d tensor to be added, weighted, to a critic's loss.
    """

    real_average: Tensor
    fake_average: Tensor
    calls: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay: got {decay}, expected a number in [0, 1)")
        self.decay = decay
        self.register_buffer("real_average", torch.zeros(()))
        self.register_buffer("fake_average", torch.zeros(()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, *, real: Tensor, fake: Tensor) -> Tensor:
        """See :func:`genmod.ops.lecam`."""
        if self.training and real.numel() and fake.numel():
            self._update(real.detach(), fake.detach())
        # Copies, so that autograd's inputs are not those that the next call changes.
        averages = self.real_average.clone(), self.fake_average.clone()
        return ops.lecam(real=real, fake=fake, real_average=averages[0], fake_average=averages[1])

    @torch.no_grad()
    def _update(self, real: Tensor, fake: Tensor) -> None:
        # As tensors, so that a GPU is not waited for.
        step = torch.where(self.calls == 0, 1.0, 1.0 - self.decay).to(self.real_average.dtype)
        for average, logits in ((self.real_average, real), (self.fake_average, fake)):
            average.lerp_(logits.mean(dtype=average.dtype), step)
        self.calls += 1

    def extra_repr(self) -> str:
        """The option, for `repr`."""
        return f"decay={self.decay}"
