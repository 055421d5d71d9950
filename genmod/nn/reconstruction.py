"""Modules of the `reconstruction` family."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from genmod import ops
from genmod.ops import _checks
from genmod.ops._reductions import REDUCTIONS, Reduction

Kind = Literal["bernoulli", "gaussian", "laplace", "discretized_logistic", "logistic_mixture", "mse", "l1"]
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "bernoulli": ops.bernoulli_nll,
    "gaussian": ops.gaussian_nll,
    "laplace": ops.laplace_nll,
    "discretized_logistic": ops.discretized_logistic_nll,
    "logistic_mixture": ops.logistic_mixture_nll,
    "mse": ops.mse,
    "l1": ops.l1,
}


class ReconstructionLoss(nn.Module):
    """A reconstruction loss chosen by name.

    Args:
        kind: "bernoulli", "gaussian", "laplace", "discretized_logistic", "logistic_mixture", "mse" or "l1".
        reduction: see :func:`genmod.ops.bernoulli_nll`.
        options: what else the loss takes, such as `sigma=0.1` for "gaussian" or `bins=32` for "discretized_logistic".

    Shape:
        `forward(output, target)` from a decoder's raw output, as the loss of that kind takes it, to the loss.
    """

    def __init__(self, kind: Kind = "bernoulli", *, reduction: Reduction = "batchmean", **options: Any) -> None:
        super().__init__()
        _checks.choice("kind", kind, tuple(_LOSSES))
        _checks.choice("reduction", reduction, REDUCTIONS)
        parameters = inspect.signature(_LOSSES[kind]).parameters
        taken = [name for name in parameters if name not in ("output", "target", "reduction")]
        for name in options:
            if name not in taken:
                raise TypeError(f"{name}: not an option of kind {kind!r}, which takes {', '.join(taken)}")
        self.kind, self.reduction, self.options = kind, reduction, options

    def forward(self, output: Tensor, target: Tensor, **options: Any) -> Tensor:
        """The loss; `options` add to, and come before, those given to the module, as a `mask` of the batch does."""
        return _LOSSES[self.kind](output, target, reduction=self.reduction, **{**self.options, **options})

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        given = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"{self.kind!r}, reduction={self.reduction!r}{given}"
