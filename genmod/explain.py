"""`genmod.explain`: what a call would run, and why not something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from genmod import backends, ops


class Explanation(NamedTuple):
    """The backend that a call takes, and why each other one does not."""

    op: str
    device: str
    backend: str
    reason: str
    refused: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"{self.op} on {self.device}: {self.backend} ({self.reason})"]
        return "\n".join(lines + [f"  not {name}: {why}" for name, why in self.refused])


def explain(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Say which backend `op(*args, **kwargs)` would take, without running it.

    Args:
        op: a public op or its name, as in `genmod.ops`.
        args, kwargs: what it would be called with; the first tensor among them decides the device.

    Raises:
        ValueError: if `op` is not a genmod op, or no tensor is given.
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    dispatcher_op = backends.dispatcher_op(name)
    if dispatcher_op is None:
        known = (o for o in ops.__all__ if backends.dispatcher_op(o) is not None)
        raise ValueError(f"op: got {name!r}, expected one of {', '.join(known)}")
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
    if not tensors:
        raise ValueError("args: got no tensor, expected what the op would be called with")
    device = tensors[0].device
    noise = kwargs.get("noise")
    if isinstance(noise, torch.Tensor) and noise.requires_grad:
        return Explanation(name, str(device), "reference", "the noise requires a gradient", ())
    backend, reason, refused = backends.explain_choice(dispatcher_op, device)
    return Explanation(name, str(device), backend, reason, tuple(refused))
