"""Lazy regularisation: a penalty on every k-th step only, k times as strong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


class Lazy:
    r"""Runs a penalty on steps 0, k, 2k, … and multiplies it by k, so that its mean strength stays what it was.

    Args:
        penalty: any function or module that returns a penalty.
        every: k, >= 1.

    Calling it with the step number and the penalty's own arguments returns the penalty, or None on the steps between.
    Source: Karras et al., *Analyzing and improving the image quality of StyleGAN*, CVPR 2020, appendix B.
    """

    def __init__(self, penalty: Callable[..., Tensor], every: int = 16) -> None:
        _check_every(every)
        self.penalty, self.every = penalty, every

    def due(self, step: int) -> bool:
        """Whether the penalty runs on this step."""
        return step % self.every == 0

    def __call__(self, step: int, *args: Any, **kwargs: Any) -> Tensor | None:
        return self.every * self.penalty(*args, **kwargs) if self.due(step) else None


def lazy_adam(lr: float, betas: tuple[float, float] = (0.0, 0.99), *, every: int = 16) -> dict[str, Any]:
    r"""Adam's `lr` and `betas` for an optimiser that also takes the extra step of a lazy penalty.

    When loss and lazy penalty step separately there are k + 1 steps where there were k. With :math:`c = k / (k + 1)`
    the learning rate becomes :math:`c\,\mathrm{lr}` and the betas :math:`\beta^c`, which keeps the course of training.
    Do not use it when penalty and loss are summed before one step.

    Returns:
        A dictionary with `lr` and `betas`, to pass on as `Adam(parameters, **lazy_adam(2e-3, (0.0, 0.99)))`.

    Source: Karras et al., CVPR 2020, appendix B.
    """
    _check_every(every)
    c = every / (every + 1)
    return {"lr": c * lr, "betas": (betas[0] ** c, betas[1] ** c)}


def _check_every(every: int) -> None:
    if isinstance(every, bool) or not isinstance(every, int):
        raise TypeError(f"every: got {type(every).__name__}, expected an int")
    if every < 1:
        raise ValueError(f"every: got {every}, expected at least 1")
