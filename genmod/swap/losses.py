"""Mixins of PyTorch's losses."""

from __future__ import annotations

import torch
from torch import Tensor

from genmod import ops
from genmod.swap.classes import Swapped

_FLOATING = (torch.float32, torch.float64)


class _Loss(Swapped):
    """What they share: which inputs are covered."""

    reduction: str

    def _genmod_covers(self, input: Tensor, target: Tensor) -> bool:
        if self._genmod_swap is None:
            return False
        like = (input.shape, input.dtype, input.device) == (target.shape, target.dtype, target.device)
        # In half precision the ops sum in float32 and return that, where PyTorch rounds.
        if like and input.dim() and input.numel() and input.dtype in _FLOATING and self.reduction in ("mean", "sum"):
            return not torch.is_autocast_enabled(input.device.type)
        self._genmod_stock(f"{input.dtype} of shape {tuple(input.shape)} and {target.dtype} of {tuple(target.shape)}")
        return False


class MSELoss(_Loss):
    """Mixin of `nn.MSELoss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """As `nn.MSELoss`."""
        if not self._genmod_covers(input, target):
            return super().forward(input, target)
        return ops.mse(input, target, reduction=self.reduction)  # type: ignore[arg-type]


class L1Loss(_Loss):
    """Mixin of `nn.L1Loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """As `nn.L1Loss`."""
        if not self._genmod_covers(input, target):
            return super().forward(input, target)
        return ops.l1(input, target, reduction=self.reduction)  # type: ignore[arg-type]


class BCEWithLogitsLoss(_Loss):
    """Mixin of `nn.BCEWithLogitsLoss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """As `nn.BCEWithLogitsLoss`."""
        if not self._genmod_covers(input, target):
            return super().forward(input, target)
        return ops.bernoulli_nll(input, target, reduction=self.reduction)  # type: ignore[arg-type]
