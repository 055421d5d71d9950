"""Defining a dispatcher op: schema, kernels, fake and autograd, in one call each.

`define` gives an op its schema, its fake (shapes and strides without data) and its kernels: the reference for every
device, and for CUDA tensors the choice of `genmod.backends`. The C++ extension registers its CPU kernels by itself.

`differentiate` makes a forward op differentiable by its backward op. `differentiate_backward` makes that backward op
differentiable in turn, by autograd through its reference: exact, to any order, and off the fast path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genmod import backends

LIBRARY = torch.library.Library("genmod", "DEF")


def define(family: str, schema: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define `genmod::<op>` from a schema string and return it, ready to be called."""
    op = schema.split("(", 1)[0]
    backends.register_op(op, family)
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(op, backends.implementation("reference", op), "CompositeExplicitAutograd")
    if torch.version.cuda or torch.version.hip:
        LIBRARY.impl(op, backends.on_cuda(op), "CUDA")
    torch.library.register_fake(f"genmod::{op}", fake, lib=LIBRARY)
    return getattr(torch.ops.genmod, op).default


def differentiate(op: str, setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Register autograd for a forward op. A gradient that does not arrive stays None in `backward`."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        setup(ctx, inputs, output)

    torch.library.register_autograd(f"genmod::{op}", backward, setup_context=setup_context, lib=LIBRARY)


def differentiate_backward(op: str) -> None:
    """Register autograd for a backward op: the vector-Jacobian product of its reference."""
    reference = backends.implementation("reference", op)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(v if isinstance(v, Tensor) else None for v in inputs))
        ctx.rest = tuple(None if isinstance(v, Tensor) else v for v in inputs)

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        further = torch.is_grad_enabled()
        with torch.enable_grad():
            # Aliases, so that one input's gradient does not flow on through another that was computed from it.
            args = [r if t is None else t.view_as(t) for t, r in zip(ctx.saved_tensors, ctx.rest)]
            outputs = reference(*args)
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            pairs = [(o, g) for o, g in zip(outputs, grads) if g is not None and o.requires_grad]
            inputs = [i for i, a in enumerate(args) if isinstance(a, Tensor) and ctx.needs_input_grad[i]]
            results: list[Tensor | None] = [None] * len(args)
            if pairs and inputs:
                found = torch.autograd.grad(
                    [o for o, _ in pairs], [args[i] for i in inputs], [g for _, g in pairs], create_graph=further, allow_unused=True
                )
                for i, g in zip(inputs, found):
                    results[i] = g
        return tuple(results)

    differentiate(op, setup, backward)
