"""What an op *is*: one record per op, from which its tests, its benchmarks, its docs and `explain` are made.

An op that is not described here does not exist for the rest of the house; one that is described but lacks a piece
fails `tests/test_registry.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Sample:
    """One call of a public op: `op(*args, **kwargs)`. `name` says what is special about it."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def map(self, transform: Callable[[torch.Tensor], torch.Tensor]) -> Sample:
        """The same call with every tensor argument transformed."""

        def apply(value: Any) -> Any:
            return transform(value) if isinstance(value, torch.Tensor) else value

        return Sample(self.name, tuple(map(apply, self.args)), {k: apply(v) for k, v in self.kwargs.items()})

    def get(self, which: int | str) -> Any:
        """The argument at a position or of a name; None if the call does not give it."""
        if isinstance(which, str):
            return self.kwargs.get(which)
        return self.args[which] if which < len(self.args) else None

    def replace(self, values: dict[int | str, Any]) -> Sample:
        """The same call with some arguments, by position or name, exchanged."""
        args = tuple(values.get(i, v) for i, v in enumerate(self.args))
        return Sample(self.name, args, {k: values.get(k, v) for k, v in self.kwargs.items()})

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor argument, in order."""
        return [v for v in (*self.args, *self.kwargs.values()) if isinstance(v, torch.Tensor)]


@dataclass(frozen=True)
class BadCall:
    """A call that must raise `error` with a message that contains every one of `mentions`."""

    name: str
    call: Callable[[], Any]
    error: type[Exception]
    mentions: tuple[str, ...]


@dataclass(frozen=True)
class Workload:
    """A named shape that people really run, for the benchmarks."""

    name: str
    make: Callable[[torch.device, torch.dtype], Sample]


@dataclass(frozen=True)
class OpSpec:
    """An op, completely.

    Attributes:
        name: the public function is `genmod.ops.<name>`, the dispatcher op `genmod::<name>`.
        family: the module of that name in ops/, reference/, kernels/ and csrc/.
        summary: one line, for tables.
        public: the public function.
        eager: the op as people write it in PyTorch, with the public signature: the baseline of accuracy and of speed.
        gradient_order: how often the op can be differentiated.
        dispatcher_ops: every dispatcher op that it is made of.
        differentiable: the tensor arguments that may require a gradient, by position, or by name if keyword-only.
        samples: `(device, dtype) -> Sample`s that the test battery runs, small.
        bad_calls: calls that must raise, with what the message has to mention.
        workloads: shapes to benchmark.
        gpu_workloads: further ones for a GPU: several times as large as its last cache, or as people run there.
        bytes_moved: `(sample, backward) -> bytes` that an ideal kernel moves.
        flops: `(sample, backward) -> floating-point operations`, elementary functions counted as one.
        modules: names in genmod.nn made from it.
        kept_bytes: `(sample) -> bytes` that may be kept for backward besides the inputs; a few by default.
        magnitude: `(sample) -> (of outputs, of gradients)`, the size of the terms of both signs that each is a sum of.
            Their rounding in float32 (float64) is the result's, however small that is; without cancellation it is
            nothing to speak of.
        pointwise: whether each element of an output of the input's shape depends on that element of the inputs alone.
        reordering: error that a sum in another order than eager's may have besides twice eager's error, in units of the
            rounding, in float32 (float64), of a result's largest element; for ops whose results are long sums.
        any_threads: whether the bits are the same on any number of threads; not for what contains torch's convolutions.
        autocasts: the arguments, by position or name, that autocast casts, as it does a convolution's; usually none.
        vendor: whether on a GPU the vendor's library computes it, so that no kernel of ours is compiled.
    """

    name: str
    family: str
    summary: str
    public: Callable[..., Any]
    eager: Callable[..., Any]
    gradient_order: int
    dispatcher_ops: tuple[str, ...]
    differentiable: tuple[int | str, ...]
    samples: Callable[[torch.device, torch.dtype], Iterator[Sample]]
    bad_calls: Callable[[], Iterator[BadCall]]
    workloads: tuple[Workload, ...]
    bytes_moved: Callable[[Sample, bool], int]
    flops: Callable[[Sample, bool], int]
    modules: tuple[str, ...] = ()
    kept_bytes: Callable[[Sample], int] = lambda sample: 64
    magnitude: Callable[[Sample], tuple[float, float]] = lambda sample: (0.0, 0.0)
    pointwise: bool = True
    reordering: float = 0.0
    any_threads: bool = True
    autocasts: tuple[int | str, ...] = ()
    gpu_workloads: tuple[Workload, ...] = ()
    vendor: bool = False


_SPECS: dict[str, OpSpec] = {}


def register(spec: OpSpec) -> OpSpec:
    """Add an op to the registry. Two ops of one name are a mistake."""
    if spec.name in _SPECS:
        raise ValueError(f"op {spec.name!r} is registered already")
    _SPECS[spec.name] = spec
    return spec


def specs() -> dict[str, OpSpec]:
    """Every op registered so far, by name. `genmod.specs` registers all of them."""
    return dict(_SPECS)
