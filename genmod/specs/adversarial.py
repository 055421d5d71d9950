"""Specs of the family `adversarial`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genmod import ops
from genmod.ops.adversarial import KINDS
from genmod.registry import BadCall, OpSpec, Sample, Workload, register

# The ops as people write them.


def _softplus(x: Tensor) -> Tensor:
    # torch's own threshold of 20 costs e^-20, which a float64 oracle cannot afford.
    return F.softplus(x, threshold=40.0)


def _reduce(values: Tensor, reduction: str) -> Tensor:
    reduced: dict[str, Callable[[], Tensor]] = {"none": lambda: values, "mean": values.mean, "sum": values.sum}
    return reduced[reduction]()


def eager_critic_loss(*, real, fake, kind="non_saturating", reduction="mean"):
    """The two sides, each averaged, and added."""
    if kind == "relativistic":
        return _reduce(_softplus(-(real - fake)), reduction)
    if kind == "hinge":
        first, second = F.relu(1 - real), F.relu(1 + fake)
    elif kind == "least_squares":
        first, second = 0.5 * (real - 1).square(), 0.5 * fake.square()
    elif kind == "wasserstein":
        first, second = -real, fake
    else:
        first, second = _softplus(-real), _softplus(fake)
    return _reduce(first, reduction) + _reduce(second, reduction)


def eager_generator_loss(*, fake, real=None, kind="non_saturating", reduction="mean"):
    """One side only, or the difference of both."""
    if kind == "relativistic":
        return _reduce(_softplus(-(fake - real)), reduction)
    if kind == "least_squares":
        return _reduce(0.5 * (fake - 1).square(), reduction)
    if kind in ("hinge", "wasserstein"):
        return _reduce(-fake, reduction)
    return _reduce(-_softplus(fake) if kind == "saturating" else _softplus(-fake), reduction)


def eager_lecam(*, real, fake, real_average, fake_average):
    """Mean squared distance of each side from the other's average."""
    return (real - fake_average).square().mean() + (fake - real_average).square().mean()


# Samples: what the test battery runs.


def _tensors(device: torch.device, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    # Drawn in float64, so that every dtype sees the same numbers up to rounding.
    return (scale * torch.randn(*shape, dtype=torch.float64)).to(device, dtype)


def _pairs(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Logits of one shape, of every size, rank and layout that matters."""

    def t(*shape: int, scale: float = 1.0) -> Tensor:
        return _tensors(device, dtype, *shape, scale=scale)

    def last(x: Tensor, form: torch.memory_format = torch.channels_last) -> Tensor:
        return x.contiguous(memory_format=form)

    yield "vector", t(7), t(7)
    yield "column", t(6, 1), t(6, 1)
    yield "patches", t(2, 1, 5, 3), t(2, 1, 5, 3)
    yield "one element", t(1), t(1)
    yield "empty", t(0, 3), t(0, 3)
    yield "several chunks", t(3, 367), t(3, 367)
    yield "channels_last", last(t(2, 3, 4, 5)), last(t(2, 3, 4, 5))
    yield "channels_last and not", last(t(2, 3, 2, 3)), last(t(2, 3, 2, 3))[:, [2, 0, 1]]
    yield "channels_last_3d", last(t(2, 2, 2, 3, 2), torch.channels_last_3d), t(2, 2, 2, 3, 2)
    both = t(8, 4)
    yield "slices of one tensor", both[1:4, :3], both[4:7, 1:]
    yield "permuted", t(5, 4).t(), t(4, 5)
    yield "expanded", t(1, 5).expand(3, 5), t(3, 1).expand(3, 5)
    yield "far from zero", t(3, 9, scale=40.0), t(3, 9, scale=40.0)


def _critic_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for number, (name, real, fake) in enumerate(_pairs(device, dtype)):
        kinds = KINDS if name == "vector" else ("non_saturating", KINDS[number % 6])[: 1 + number % 2]
        for kind in kinds:
            yield Sample(f"{name}, {kind}", (), {"real": real, "fake": fake, "kind": kind})
        if name in ("patches", "channels_last", "permuted"):
            kind = KINDS[(number + 3) % 6]
            options = {"kind": kind, "reduction": "none"}
            yield Sample(f"{name}, {kind}, none", (), {"real": real, "fake": fake, **options})
    odd = _tensors(device, dtype, 5), _tensors(device, dtype, 3, 2)
    for kind, reduction in (("non_saturating", "mean"), ("hinge", "sum")):
        options = {"kind": kind, "reduction": reduction}
        yield Sample(f"batches of two sizes, {kind}", (), {"real": odd[0], "fake": odd[1], **options})


def _generator_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for number, (name, real, fake) in enumerate(_pairs(device, dtype)):
        for kind in KINDS if name == "vector" else ("non_saturating", KINDS[(number + 1) % 6])[number % 2 :]:
            options = {"kind": kind, "reduction": ("mean", "none", "sum")[number % 3]}
            pair = {"fake": real, "real": fake} if kind == "relativistic" else {"fake": real}
            yield Sample(f"{name}, {kind}, {options['reduction']}", (), {**pair, **options})


def _lecam_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    averages = {
        "real_average": torch.tensor(0.75, device=device, dtype=wide),
        "fake_average": torch.tensor([-1.25], device=device, dtype=wide),
    }
    for name, real, fake in _pairs(device, dtype):
        yield Sample(name, (), {"real": real, "fake": fake, **averages})
    odd = {"real": _tensors(device, dtype, 5), "fake": _tensors(device, dtype, 3, 2)}
    yield Sample("batches of two sizes", (), {**odd, **averages})
    # Taken as constants in half precision they would differ from the oracle's by more than the logits do.
    narrow = {name: value.to(dtype) for name, value in averages.items()}
    yield Sample("averages of the logits' dtype", (), {**odd, **narrow})


# Calls that must raise.


def _bad_pairs(op: Callable[..., Any], **options: Any) -> Iterator[BadCall]:
    x = torch.zeros(2, 4)

    def call(real: Any, fake: Any) -> Callable[[], Any]:
        return lambda: op(real=real, fake=fake, **options)

    yield BadCall("not a tensor", call(x, 1.0), TypeError, ("fake", "float", "tensor"))
    yield BadCall("a list", call([1.0], x), TypeError, ("real", "list", "tensor"))
    yield BadCall("integers", call(x, x.int()), TypeError, ("fake", "int32", "float32"))
    yield BadCall("dtypes", call(x, x.double()), TypeError, ("fake", "float64", "float32"))
    yield BadCall("devices", call(x, x.to("meta")), ValueError, ("fake", "meta", "cpu"))
    yield BadCall("no dimension", call(torch.zeros(()), x), ValueError, ("real", "0-d"))
    yield BadCall("sparse", call(x, x.to_sparse()), TypeError, ("fake", "sparse", "dense"))


def _bad_options(op: Callable[..., Any]) -> Iterator[BadCall]:
    x = torch.zeros(2, 4)
    yield BadCall("kind", lambda: op(real=x, fake=x, kind="logistic"), ValueError, ("kind", "logistic", "hinge"))
    yield BadCall(
        "reduction", lambda: op(real=x, fake=x, reduction="batchmean"), ValueError, ("reduction", "batchmean", "sum")
    )
    yield BadCall(
        "pairs of two shapes",
        lambda: op(real=x, fake=x[:1], kind="relativistic"),
        ValueError,
        ("fake", "(1, 4)", "(2, 4)", "relativistic"),
    )


def _bad_critic_loss() -> Iterator[BadCall]:
    x = torch.zeros(2, 4)
    yield from _bad_pairs(ops.critic_loss)
    yield from _bad_options(ops.critic_loss)
    yield BadCall(
        "two shapes element by element",
        lambda: ops.critic_loss(real=x, fake=x[:1], reduction="none"),
        ValueError,
        ("fake", "(1, 4)", "(2, 4)", "none"),
    )


def _bad_generator_loss() -> Iterator[BadCall]:
    x, op = torch.zeros(2, 4), ops.generator_loss
    yield from _bad_pairs(op, kind="relativistic")
    yield from _bad_options(op)
    yield BadCall("alone and integers", lambda: op(fake=x.int()), TypeError, ("fake", "int32", "float32"))
    yield BadCall("no real", lambda: op(fake=x, kind="relativistic"), ValueError, ("real", "None", "relativistic"))


def _bad_lecam() -> Iterator[BadCall]:
    op: Any = ops.lecam
    x, average = torch.zeros(2, 4), torch.zeros(())
    yield from _bad_pairs(op, real_average=average, fake_average=average)
    for name, value, error, mentions in (
        ("a number", 0.5, TypeError, ("float", "tensor")),
        ("an integer", average.int(), TypeError, ("int32", "float32")),
        ("several", torch.zeros(2), ValueError, ("(2,)", "one element")),
        ("elsewhere", average.to("meta"), ValueError, ("meta", "cpu")),
    ):
        yield BadCall(
            f"average, {name}",
            functools.partial(op, real=x, fake=x, real_average=average, fake_average=value),
            error,
            ("fake_average", *mentions),
        )


# Workloads and what an ideal kernel would do on them.

_SHAPES = (("one logit per sample [64]", (64,)), ("patch map [64, 1, 30, 30]", (64, 1, 30, 30)))


def _workloads(options: dict[str, Any], *names: str, average: bool = False) -> tuple[Workload, ...]:
    def workload(label: str, shape: tuple[int, ...]) -> Workload:
        def make(device: torch.device, dtype: torch.dtype) -> Sample:
            logits = {name: torch.randn(shape, device=device).to(dtype) for name in names}
            averages = ("real_average", "fake_average") if average else ()
            return Sample(label, (), {**logits, **{a: torch.zeros((), device=device) for a in averages}, **options})

        return Workload(label, make)

    suffix = "".join(f", {value}" for value in options.values())
    return tuple(workload(f"{label}{suffix}", shape) for label, shape in _SHAPES)


def _bytes(sample: Sample, backward: bool) -> int:
    """Forward reads the logits, and makes the derivatives as well; backward reads those and writes gradients."""
    size = sum(t.numel() * t.element_size() for t in sample.tensors())
    return size + _kept(sample) if backward else size


def _flops(per_logit: int) -> Callable[[Sample, bool], int]:
    return lambda sample, backward: sum(t.numel() for t in sample.tensors()) * (1 if backward else per_logit)


def _kept(sample: Sample) -> int:
    """The derivatives, in the loss's precision."""
    logits = (sample.kwargs[name] for name in ("real", "fake") if name in sample.kwargs)
    return sum(t.numel() * max(t.element_size(), 4) for t in logits)


_DISPATCHER_OPS = ("adversarial", "adversarial_with_gradients", "adversarial_backward")


def _terms(sample: Sample) -> tuple[float, float]:
    """Some losses are means, or sums, of the logits as they are, of both signs."""
    logits = [t.detach().double().abs() for t in sample.tensors() if t.dim()]
    add = torch.sum if sample.kwargs.get("reduction") == "sum" else torch.mean
    return sum(add(t[t.isfinite()]).item() for t in logits if t.isfinite().any()), 0.0


register(
    OpSpec(
        name="critic_loss",
        family="adversarial",
        summary="what a critic minimises: six losses, the gradients of both sides made in the forward pass",
        public=ops.critic_loss,
        eager=eager_critic_loss,
        gradient_order=2,
        dispatcher_ops=_DISPATCHER_OPS,
        differentiable=("real", "fake"),
        samples=_critic_samples,
        bad_calls=_bad_critic_loss,
        workloads=(
            *_workloads({}, "real", "fake"),
            *_workloads({"kind": "hinge"}, "real", "fake"),
            *_workloads({"kind": "relativistic"}, "real", "fake"),
        ),
        bytes_moved=_bytes,
        flops=_flops(5),
        modules=("CriticLoss",),
        kept_bytes=_kept,
        magnitude=_terms,
    )
)
register(
    OpSpec(
        name="generator_loss",
        family="adversarial",
        summary="what a generator minimises: six losses, the gradient made in the forward pass",
        public=ops.generator_loss,
        eager=eager_generator_loss,
        gradient_order=2,
        dispatcher_ops=_DISPATCHER_OPS,
        differentiable=("real", "fake"),
        samples=_generator_samples,
        bad_calls=_bad_generator_loss,
        workloads=(
            *_workloads({}, "fake"),
            *_workloads({"kind": "wasserstein"}, "fake"),
            *_workloads({"kind": "relativistic"}, "fake", "real"),
        ),
        bytes_moved=_bytes,
        flops=_flops(5),
        modules=("GeneratorLoss",),
        kept_bytes=_kept,
        magnitude=_terms,
    )
)
register(
    OpSpec(
        name="lecam",
        family="adversarial",
        summary="LeCam regularisation: squared distances of the logits from moving averages, gradients made in forward",
        public=ops.lecam,
        eager=eager_lecam,
        gradient_order=2,
        dispatcher_ops=_DISPATCHER_OPS,
        differentiable=("real", "fake"),
        samples=_lecam_samples,
        bad_calls=_bad_lecam,
        workloads=_workloads({}, "real", "fake", average=True),
        bytes_moved=_bytes,
        flops=_flops(4),
        modules=("LeCam",),
        kept_bytes=lambda sample: _kept(sample) + 64,
    )
)
