"""Defining a dispatcher op: schema, kernels, fake and autograd.

`define` gives an op its schema, its fake (shapes and strides without data) and its kernels: the reference for every
device, and for CUDA tensors the choice of `genmod.backends`. The C++ extension registers its CPU kernels by itself.

`differentiate` makes a forward op differentiable by its backward op. `differentiate_backward` makes that backward op
differentiable in turn, by autograd through its reference: exact, to any order, and off the fast path.

Both return the function that public ops call. It is the op's own Autograd kernel, called without passing through the
dispatcher first: at small sizes the two trips through the dispatcher that `torch.library.register_autograd` makes cost
several times what the kernel does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from genmod import backends, gate
from genmod.ops._tracing import compiling, tracing_state

LIBRARY = torch.library.Library("genmod", "DEF")

# What torch's own Autograd kernels open too. Below it nothing is recorded as a view, so that a kernel may return a view
# of a tensor that it made, and the caller may still change the result in place.
_below_autograd = torch._C._AutoDispatchBelowADInplaceOrView


def define(family: str, schema: str, fake: Callable[..., Any]) -> None:
    """Define `genmod::<op>` from a schema string."""
    op = schema.split("(", 1)[0]
    backends.register_op(op, family)
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(op, backends.implementation("reference", op), "CompositeExplicitAutograd")
    if torch.version.cuda or torch.version.hip:
        LIBRARY.impl(op, backends.on_cuda(op), "CUDA")
    torch.library.register_fake(f"genmod::{op}", fake, lib=LIBRARY)


def apply_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply` for a function without `setup_context`, inside the gate. What torch does around that in Python,
    for each argument and in case there is one, takes longer than a small kernel."""
    # The method in C that torch's own ends in.
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    unwrap = torch._C._functorch.unwrap_if_dead

    def call(*inputs: Any) -> Any:
        try:
            gate.enter()
            if torch._C._are_functorch_transforms_active():
                return function.apply(*inputs)
            return apply(*[unwrap(i) if isinstance(i, Tensor) else i for i in inputs])
        finally:
            gate.leave()

    return call


def differentiate(
    op: str,
    save: Callable[..., None],
    backward: Callable[..., Any],
    *,
    keeps_outputs: bool = False,
    forward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register autograd for an op and return the function to call it by.

    Args:
        op: its name.
        save: `(ctx, *inputs)`, keeps what `backward` needs.
        backward: `(ctx, *grads)` to one gradient per input; a gradient that does not arrive is None.
        keeps_outputs: `save` is `(ctx, outputs, *inputs)`. It may keep outputs too, and marks those that are not
            differentiable, such as statistics.
        forward: `(ctx, *inputs)` to the op's outputs and what else was made on the way: computes the op where gradients
            will be needed, if that is better done by another op. `save` is then `(ctx, what_else, *inputs)`.
    """
    overload = getattr(torch.ops.genmod, op).default
    direct = overload._op  # what the overload's own __call__ does nothing but call

    def run(ctx: Any, *inputs: Any) -> Any:
        outputs = direct(*inputs)
        return outputs, outputs

    compute = forward or run

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            ctx.set_materialize_grads(False)
            with _below_autograd():
                outputs, made = compute(ctx, *inputs)
            save(ctx, *((made, *inputs) if keeps_outputs or forward else inputs))
            return outputs

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            return backward(ctx, *grads)

    Function.__name__ = Function.__qualname__ = f"genmod_{op}"
    apply = apply_of(Function)

    def kernel(*inputs: Any) -> Any:
        if torch.is_grad_enabled():
            for i in inputs:
                if isinstance(i, Tensor) and i.requires_grad:
                    return apply(*inputs)
        try:
            gate.enter()
            with _below_autograd():
                return direct(*inputs)
        finally:
            gate.leave()

    def call(*inputs: Any) -> Any:
        # As `is_traced`, which would cost a small call a hundredth.
        return overload(*inputs) if compiling() or tracing_state() is not None else kernel(*inputs)

    LIBRARY.impl(op, kernel, "Autograd")
    return call


def differentiate_in_one_pass(
    op: str, save: Callable[..., None], backward: Callable[..., Any], *, positions: tuple[int, ...]
) -> Callable[..., Any]:
    """Return what to call a loss by where its gradients are to be computed with it.

    The first backward pass that comes gets them. The tensors that were kept are the ones that are returned, so no later
    change to them can be seen here: a second backward pass over the same graph takes `backward`, which recomputes, and
    so does one that is to be differentiated.

    Args:
        op: computes the loss, one number, and the gradients; behind the inputs it takes an integer, which bit by bit
            says which are wanted, if there are several.
        save, backward: as in `differentiate`, of the op that computes the loss alone.
        positions: whose gradients they are, among the inputs.
    """
    overload = getattr(torch.ops.genmod, op).default

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            ctx.set_materialize_grads(False)
            save(ctx, *inputs)
            wanted = sum(ctx.needs_input_grad[p] << i for i, p in enumerate(positions))
            with _below_autograd():
                loss, *ctx.ready = overload(*inputs, wanted) if len(positions) > 1 else overload(*inputs)
            return loss

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None) -> Any:
            if grad is None or torch.is_grad_enabled() or ctx.ready is None:
                return backward(ctx, grad)
            ready, ctx.ready = ctx.ready, None
            if grad.item() != 1:
                for gradient in ready:
                    gradient.mul_(grad)
            results: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
            for position, gradient in zip(positions, ready, strict=True):
                if ctx.needs_input_grad[position]:
                    results[position] = gradient
            return tuple(results)

    Function.__name__ = Function.__qualname__ = f"genmod_{op}"
    return apply_of(Function)


def differentiate_backward(
    op: str,
    double_backward: Callable[..., Any] | None = None,
    *,
    prepare: Callable[[list[Any]], list[Any]] = lambda inputs: inputs,
) -> Callable[..., Any]:
    """Register autograd for a backward op, the vector-Jacobian product of its reference; return what to call.

    Args:
        op: its name.
        double_backward: `(ctx, *grads)` to one gradient per input, or None for a call that it does not cover. It takes
            the calls whose result will not be differentiated again; `ctx.saved_tensors` are the op's tensor inputs in
            their places, and `ctx.rest` the others.
        prepare: gives the reference other inputs that come to the same and cost less. None may have become another that
            needs a gradient.
    """
    reference = backends.implementation("reference", op)

    def save(ctx: Any, *inputs: Any) -> None:
        ctx.save_for_backward(*(v if isinstance(v, Tensor) else None for v in inputs))
        ctx.rest = tuple(None if isinstance(v, Tensor) else v for v in inputs)

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        further = torch.is_grad_enabled()
        if double_backward is not None and not further:
            made = double_backward(ctx, *grads)
            if made is not None:
                return made
        inputs = [rest if t is None else t for t, rest in zip(ctx.saved_tensors, ctx.rest, strict=True)]
        with torch.enable_grad():
            # Aliases, so that one input's gradient does not flow on through another that was computed from it.
            aliases = [v.view_as(v) if isinstance(v, Tensor) else v for v in inputs]
            return tuple(_gradients(reference, prepare(aliases), ctx.needs_input_grad, grads, further))

    return differentiate(op, save, backward)


def _gradients(
    reference: Callable[..., Any],
    inputs: Sequence[Any],
    wanted: Sequence[bool],
    incoming: Sequence[Tensor | None],
    further: bool,
) -> list[Tensor | None]:
    """The gradient of each input that wants one; differentiable in turn if `further`."""
    results: list[Tensor | None] = [None] * len(inputs)
    outputs = reference(*inputs)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    known = [(o, g) for o, g in zip(outputs, incoming, strict=True) if g is not None and o.requires_grad]
    places = [i for i, value in enumerate(inputs) if isinstance(value, Tensor) and wanted[i]]
    if known and places:
        outputs, arriving = zip(*known, strict=True)
        leaves = [inputs[i] for i in places]
        found = torch.autograd.grad(outputs, leaves, arriving, create_graph=further, allow_unused=True)
        for i, grad in zip(places, found, strict=True):
            results[i] = grad
    return results
