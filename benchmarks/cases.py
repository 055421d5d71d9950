"""What is timed: one op, on one workload, in one mode, by each contender, on the same tensors."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

import genmod
from genmod import backends
from genmod.registry import OpSpec, Sample, Workload
from genmod.testing import battery

MODES = ("forward", "forward+backward", "double backward")


class Case(NamedTuple):
    """One line of the table to be. `calls` maps each contender to a function without arguments, `within` some of them
    to the context that they run in."""

    op: str
    workload: str
    mode: str
    dtype: torch.dtype
    calls: dict[str, Callable[[], Any]]
    within: dict[str, Callable[[], contextlib.AbstractContextManager[None]]]
    bytes_moved: int
    flops: int


def cases(
    spec: OpSpec, workload: Workload, device: torch.device, dtype: torch.dtype, modes: tuple[str, ...]
) -> Iterator[Case]:
    """The cases of one op and workload. Contenders: eager, compile, genmod, and each of genmod's backends that runs."""
    torch.manual_seed(0)
    sample = workload.make(device, dtype)
    for mode in modes:
        # Functions compiled for another shape or mode would count against dynamo's limit and end up eager.
        torch._dynamo.reset()
        functions = {"eager": spec.eager, "compile": _compiled(spec.eager), "genmod": spec.public}
        calls = {name: _call(function, spec, sample, mode) for name, function in functions.items()}
        if mode == "double backward":
            calls.pop("compile")  # torch.compile raises for a backward of a backward
        others = _other_backends(spec, sample, device)
        calls |= {f"genmod:{name}": calls["genmod"] for name in others}
        within = {f"genmod:{name}": functools.partial(genmod.backend, name) for name in others}
        backward = mode != "forward"
        bytes_moved = spec.bytes_moved(sample, False) + (spec.bytes_moved(sample, True) if backward else 0)
        flops = spec.flops(sample, False) + (spec.flops(sample, True) if backward else 0)
        yield Case(spec.name, workload.name, mode, dtype, calls, within, bytes_moved, flops)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile of `function`; noise that it would draw is drawn outside, since `randn` inside a compiled CPU
    function is several times slower than eager's, and a baseline should be as good as its user could make it."""
    compiled = torch.compile(function)
    if "noise" not in inspect.signature(function).parameters:
        return compiled

    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("noise") is None:
            mean, logvar = (*args, None)[:2]
            kwargs["noise"] = torch.randn_like(mean if logvar is not None else mean.chunk(2, 1)[0])
        return compiled(*args, **kwargs)

    return call


def _call(function: Callable[..., Any], spec: OpSpec, sample: Sample, mode: str) -> Callable[[], Any]:
    if mode == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return function(*sample.args, **sample.kwargs)

        return forward

    call, leaves = battery.with_grad(spec, sample)
    incoming = battery.cotangents(battery.as_tuple(spec.public(*call.args, **call.kwargs)))
    # What arrives at a loss in training is one.
    incoming = [g if g.dim() else torch.ones_like(g) for g in incoming]
    second = [torch.randn_like(leaf) for leaf in leaves]

    def backward() -> Any:
        outputs = battery.as_tuple(function(*call.args, **call.kwargs))
        return torch.autograd.grad(outputs, leaves, [g.to(o.dtype) for g, o in zip(incoming, outputs)])

    def double_backward() -> Any:
        outputs = battery.as_tuple(function(*call.args, **call.kwargs))
        grads = torch.autograd.grad(
            outputs, leaves, [g.to(o.dtype) for g, o in zip(incoming, outputs)], create_graph=True
        )
        # What is linear in an input has a gradient for it that depends on nothing, and cannot be differentiated.
        curved = [(g, s) for g, s in zip(grads, second) if g.requires_grad]
        if not curved:
            return grads
        return torch.autograd.grad([g for g, _ in curved], leaves, [s for _, s in curved], allow_unused=True)

    return backward if mode == "forward+backward" else double_backward


def _other_backends(spec: OpSpec, sample: Sample, device: torch.device) -> list[str]:
    """Backends that run natively on the device, besides the one that `genmod` takes; none for plain PyTorch."""
    if not spec.dispatcher_ops:
        return []
    native = {"cpu": ("reference", "cpp"), "cuda": ("reference", "triton", "cuda")}[device.type]
    taken = genmod.explain(spec.public, *sample.args, **sample.kwargs).backend
    return [s.name for s in backends.status() if s.available and s.name in native and s.name != taken]
