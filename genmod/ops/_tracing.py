"""Whether torch.compile or torch.jit.trace makes a graph of what runs, and what that means for gradients."""

from __future__ import annotations

import torch
from torch import Tensor

# Looked up once: each look into a module costs a call as long as one of these takes.
compiling, tracing_state = torch.compiler.is_compiling, torch._C._get_tracing_state


def is_traced() -> bool:
    """Whether torch.compile or torch.jit.trace makes a graph, which should hold the op, not what its autograd does."""
    return compiling() or tracing_state() is not None


def gradients_are_on() -> bool:
    """Whether gradients can be asked for."""
    return torch.is_grad_enabled() or _is_traced_by_jit()


def are_differentiated(*tensors: Tensor | None) -> bool:
    """Whether gradients of any of these can be asked for."""
    on = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return on or _is_traced_by_jit()


def _is_traced_by_jit() -> bool:
    """torch.jit.trace checks its graph by another one, made without gradients and of inputs that need none. Both must
    be the same, and serve where gradients are asked for."""
    return not compiling() and tracing_state() is not None
