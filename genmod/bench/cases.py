"""What is timed: one op, on one workload, in one mode, by each contender, on the same tensors."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

import genmod
from genmod import backends
from genmod.bench import machine, peers
from genmod.registry import OpSpec, Sample, Workload
from genmod.testing import battery

MODES = ("forward", "forward+backward", "double backward")
#: Contenders that only set a ceiling, and are no row of any table.
COPY = "ceiling:copy"
#: Bytes that the rotated inputs of one case may take at most; a cold cache beyond that is the allocator's problem.
_ROTATION_LIMIT = 1 << 30


@dataclass
class Case:
    """One line of the table to be.

    Attributes:
        op, workload, mode, dtype: what it is.
        calls: contender -> function without arguments.
        within: for some of them, the context that they run in.
        bytes_moved, flops: of an ideal kernel; 0 where that is not counted.
        copied: bytes that the copy beside it reads and writes.
        cold: whether each call gets inputs that have left the cache.
        not_raced: peers that compute something else or could not run, with the reason.
    """

    op: str
    workload: str
    mode: str
    dtype: torch.dtype
    calls: dict[str, Callable[[], Any]]
    within: Mapping[str, Callable[[], contextlib.AbstractContextManager[Any]]] = field(default_factory=dict)
    bytes_moved: int = 0
    flops: int = 0
    copied: int = 0
    cold: bool = False
    not_raced: list[dict[str, str]] = field(default_factory=list)


def case(
    spec: OpSpec,
    workload: Workload,
    mode: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    compiled: bool = True,
    autotuned: bool = False,
    cold: bool = False,
) -> Case:
    """One op on one workload in one mode.

    Contenders: eager, torch.compile, the same with max-autotune (on a GPU, and where it is asked for), genmod, each
    other backend of genmod that runs here, and the installed peers that compute the same.
    """
    torch.manual_seed(0)
    samples, theirs, not_raced, others = _prepared(spec, workload, device, dtype, cold)
    sample = samples[0]
    # Functions compiled for another shape or mode would count against dynamo's limit and end up eager.
    torch._dynamo.reset()
    functions = {"eager": spec.eager, "genmod": spec.public, **theirs}
    if compiled and mode != "double backward":  # torch.compile raises for a backward of a backward
        functions["compile"] = _compiled(spec.eager)
        if autotuned or device.type == "cuda":
            functions["compile:max-autotune"] = _compiled(spec.eager, mode="max-autotune-no-cudagraphs")
    turn = itertools.count()
    calls = {name: _call(function, spec, samples, mode, turn) for name, function in functions.items()}
    calls |= {f"genmod:{name}": calls["genmod"] for name in others}
    within = {f"genmod:{name}": functools.partial(genmod.backend, name) for name in others}
    bytes_moved, flops = _ideal(spec, sample, mode)
    size = max(bytes_moved // 2, 2 * machine.last_cache_bytes(device) if cold else 0)
    if bytes_moved:
        calls[COPY] = machine.copying(device, size)
    copied = machine.copied_bytes(size)
    return Case(spec.name, workload.name, mode, dtype, calls, within, bytes_moved, flops, copied, cold, not_raced)


class _Prepared(NamedTuple):
    """What the modes of a workload share: its samples, the peers, those that are none, and the other backends."""

    samples: list[Sample]
    peers: dict[str, Callable[..., Any]]
    not_raced: list[dict[str, str]]
    backends: list[str]


@functools.lru_cache(maxsize=1)
def _prepared(spec: OpSpec, workload: Workload, device: torch.device, dtype: torch.dtype, cold: bool) -> _Prepared:
    sample = workload.make(device, dtype)
    samples = _rotated(sample, device) if cold else [sample]
    return _Prepared(samples, *peers.contenders(spec, sample), _other_backends(spec, sample, device))


def _ideal(spec: OpSpec, sample: Sample, mode: str) -> tuple[int, int]:
    """Bytes and operations of an ideal kernel; the specs count none for second derivatives."""
    if mode == "double backward":
        return 0, 0
    directions = (False, True) if mode == "forward+backward" else (False,)
    return sum(spec.bytes_moved(sample, d) for d in directions), sum(spec.flops(sample, d) for d in directions)


def _rotated(sample: Sample, device: torch.device) -> list[Sample]:
    """Copies of the inputs that together are twice as large as the last cache, so that none is in it on its turn."""
    size = max(1, sum(t.numel() * t.element_size() for t in sample.tensors()))
    count = min(2 * machine.last_cache_bytes(device), _ROTATION_LIMIT) // size + 2
    return [sample, *(sample.map(lambda t: t.clone(memory_format=torch.preserve_format)) for _ in range(count - 1))]


def _compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """torch.compile of `function`; noise that it would draw is drawn outside, since `randn` inside a compiled CPU
    function is several times slower than eager's, and a baseline should be as good as its user could make it."""
    compiled = torch.compile(function, **options)
    if "noise" not in inspect.signature(function).parameters:
        return compiled

    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("noise") is None:
            mean, logvar = (*args, None)[:2]
            kwargs["noise"] = torch.randn_like(mean if logvar is not None else mean.chunk(2, 1)[0])
        return compiled(*args, **kwargs)

    return call


def _call(
    function: Callable[..., Any], spec: OpSpec, samples: list[Sample], mode: str, turn: Iterator[int]
) -> Callable[[], Any]:
    """`function` on the next sample each time; the contenders share the turn, so that none warms another's inputs."""

    def choose(items: list[Any]) -> Any:
        return items[next(turn) % len(items)] if len(items) > 1 else items[0]

    if mode == "forward":

        def forward() -> Any:
            sample = choose(samples)
            with torch.no_grad():
                return function(*sample.args, **sample.kwargs)

        return forward

    differentiable = [battery.with_grad(spec, sample) for sample in samples]
    call, leaves = differentiable[0]
    incoming = [_incoming(o) for o in battery.as_tuple(spec.public(*call.args, **call.kwargs))]
    second = [torch.randn_like(leaf) for leaf in leaves]

    def gradients(create_graph: bool) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        call, leaves = choose(differentiable)
        outputs = battery.as_tuple(function(*call.args, **call.kwargs))
        # A peer may return the sum of what the op returns in parts; a scalar's gradient is one either way.
        grads = [g.to(o.dtype) for g, o in zip(incoming, outputs)]
        return torch.autograd.grad(outputs, leaves, grads, create_graph=create_graph), leaves

    def double_backward() -> Any:
        grads, leaves = gradients(True)
        # What is linear in an input has a gradient for it that depends on nothing, and cannot be differentiated.
        curved = [(g, s) for g, s in zip(grads, second) if g.requires_grad]
        if not curved:
            return grads
        return torch.autograd.grad([g for g, _ in curved], leaves, [s for _, s in curved], allow_unused=True)

    return (lambda: gradients(False)) if mode == "forward+backward" else double_backward


def _incoming(output: Tensor) -> Tensor:
    """What arrives in training: at a loss one, and at what goes on into a next layer a tensor that lies as it does."""
    if not output.dim():
        return torch.ones_like(output)
    return torch.empty_like(output).copy_(battery.cotangents((output,))[0])


def _other_backends(spec: OpSpec, sample: Sample, device: torch.device) -> list[str]:
    """Backends that run natively on the device, besides the one that `genmod` takes; none for plain PyTorch."""
    if not spec.dispatcher_ops:
        return []
    native = {"cpu": ("reference", "cpp"), "cuda": ("reference", "triton", "cuda")}[device.type]
    taken = genmod.explain(spec.public, *sample.args, **sample.kwargs).backend
    native = tuple(n for n in native if all(backends.has_kernel(n, op) for op in spec.dispatcher_ops))
    return [s.name for s in backends.status() if s.available and s.name in native and s.name != taken]
