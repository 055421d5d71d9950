"""Random calls of every public op against the reference: values, first gradients, inputs untouched, memory format.

The bound is the battery's (genmod.testing.battery.accuracy): against the reference in float64, at most twice the error
of the reference in the op's own dtype, the rounding of the result, and that of the terms which the spec says the result
is a sum of. One small result may be exact by luck: a reference's error is then looked for beside it, at arguments some
units in the last place away. What is not finite in the reference has to be so in the op, with its sign.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from genmod import backends, ops
from genmod.reference import gaussian as reference_gaussian
from genmod.registry import Sample
from genmod.specs import specs
from genmod.testing import battery

from .calls import CALLS
from .draw import Draw, text
from .report import Outcome


@dataclass(frozen=True)
class Target:
    """A public op, and what it is held against."""

    name: str
    public: Callable[..., Any]
    reference: Callable[..., Any]  # of the same arguments; `public` itself if the reference is a backend of it
    differentiable: tuple[int | str, ...]
    magnitude: Callable[[Sample], tuple[float, float]] = lambda sample: (0.0, 0.0)
    reordering: float = 4.0
    cancels: Callable[[Sample], bool] = lambda sample: False  # whether results are sums of terms of both signs
    eager: Callable[..., Any] | None = None
    made_of_plain: bool = False  # calls another public op, for which stock PyTorch may be taken
    written: tuple[int, ...] = ()  # arguments that the op changes: running statistics


def _clamp_logvar(logvar: Tensor, *, clamp: str) -> Tensor:
    return reference_gaussian.clamp_logvar(logvar, clamp)


def _without_spec(name: str) -> Target:
    if name == "clamp_logvar":
        return Target(name, ops.clamp_logvar, _clamp_logvar, (0,))
    if name == "critic_conv2d":
        return Target(name, ops.critic_conv2d, F.conv2d, (0, 1, 2))
    if name == "logistic_mixture_sample":
        return Target(name, ops.logistic_mixture_sample, ops.logistic_mixture_sample, ())
    raise LookupError(f"{name} has no spec: say here what it is held against")


def _cancels(name: str, family: str) -> Callable[[Sample], bool]:
    # Convolutions; a norm takes the mean away; and slopes of these losses are differences of probabilities.
    always = family in ("conv3x3", "conv4x4", "norm_act", "upsample_conv", "logistic_mixture")
    always = always or name in ("bernoulli_nll", "discretized_logistic_nll")
    return (lambda sample: True) if always else _shares_a_scale


def _shares_a_scale(sample: Sample) -> bool:
    """Whether one log-scale is that of many elements, whose gradients are added up."""
    scales = (sample.kwargs.get(name) for name in ("logvar", "log_scale"))
    return any(isinstance(t, Tensor) and t.numel() < sample.args[0].numel() for t in scales)


_WRITTEN = {"batch_norm_act": (1, 2), "conv_transpose2d_norm_act": (2, 3)}


def target(name: str) -> Target:
    """The public op of that name."""
    spec = specs().get(name)
    if spec is None:
        return _without_spec(name)
    return Target(
        name=name,
        public=spec.public,
        reference=spec.public,
        differentiable=spec.differentiable,
        magnitude=spec.magnitude,
        reordering=max(spec.reordering, 4.0),  # sums here are longer than the samples' that 0 was found enough for
        cancels=_cancels(name, spec.family),
        eager=spec.eager,
        made_of_plain=name == "conv_transpose2d_norm_act",
        written=_WRITTEN.get(name, ()),
    )


def evaluate(function: Callable[..., Any], goal: Target, sample: Sample) -> list[Tensor]:
    """Outputs, the arguments that were written to, and the gradients under random incoming ones."""
    given_ = {i: sample.get(i) for i in goal.differentiable if isinstance(sample.get(i), Tensor)}
    call = sample.map(lambda t: t.detach())
    call = call.replace({i: call.get(i).requires_grad_() for i in given_})
    written = {i: call.get(i).clone() for i in goal.written if isinstance(call.get(i), Tensor)}
    call = call.replace(dict(written))
    if isinstance(call.kwargs.get("generator"), torch.Generator):  # the same noise for everybody
        fresh = torch.Generator()
        fresh.set_state(call.kwargs["generator"].get_state())
        call = call.replace({"generator": fresh})
    outputs = battery.as_tuple(function(*call.args, **call.kwargs))
    leaves = [call.get(i) for i in given_]
    found = torch.autograd.grad(outputs, leaves, battery.cotangents(outputs), allow_unused=True) if leaves else ()
    grads = (torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found))
    return [t.detach() for t in (*outputs, *written.values(), *grads)]


def _double(t: Tensor) -> Tensor:
    # Dense: in odd layouts PyTorch's own convolution cannot compute a weight's gradient.
    return t.double().contiguous() if t.is_floating_point() else t


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0))


def check(goal: Target, sample: Sample, backend: str) -> None:
    """Everything about one call; raises AssertionError."""
    before = [(t, t.clone(), t._version) for t in sample.tensors()]
    with backends.backend(backend):
        ours = evaluate(goal.public, goal, sample)
    written = [sample.get(i) for i in goal.written]
    for t, copy, version in before:
        if not any(t is w for w in written):
            assert t._version == version and _same(t, copy), "an input was written to"
    if _depends_on_order(goal, sample):
        return
    plain = backend == "auto" and bool(
        goal.made_of_plain or backends.why_plain(goal.name, *sample.args, **sample.kwargs)
    )
    same_dtype, oracle, errors = _references(goal, sample, plain)
    if goal.name == "logistic_mixture_sample":
        _check_images(sample, ours[0], same_dtype[0])
        return
    leaves = sum(isinstance(sample.get(i), Tensor) for i in goal.differentiable)
    of_outputs, of_gradients = goal.magnitude(sample)
    dtype = sample.tensors()[0].dtype
    # Sums whose terms cancel are as exact as their terms, of which a norm's other results tell the size.
    cancels = goal.cancels(sample)
    terms = max((_largest(o) for o in oracle), default=0.0) if cancels else 0.0
    # Noise is float32's, always, and a mean may take most of it away.
    drawn = 8 * torch.finfo(torch.float32).eps if "generator" in sample.kwargs else 0.0
    soft = 64.0 if sample.kwargs.get("clamp") == "soft" else 0.0  # terms as large as its bounds
    outputs = len(ours) - leaves
    # Of a loss that is NaN, infinities cancelled, nothing can be said of the gradients.
    undefined = all(bool(t.isnan().all()) for t in same_dtype[:outputs]) or _at_a_kink(goal, sample)
    for i, (t, e, o) in enumerate(zip(ours, same_dtype, oracle, strict=True)):
        if undefined and i >= outputs:
            break
        magnitude = of_gradients if i >= outputs else of_outputs
        summed = _rounding(dtype) * (goal.reordering * max(_largest(o), terms) + magnitude + soft)
        summed += drawn * (_largest(o) + _largest(sample.tensors()[0]))
        wrong = disagreement(t, e, o, dtype, 2 * errors[i] + summed, cancels)
        if wrong and cancels:
            errors = _errors_beside(goal, sample, plain, errors)
            wrong = disagreement(t, e, o, dtype, 2 * errors[i] + summed, cancels)
        assert not wrong, f"result {i}: {wrong}"
    # A weight's gradient may happen to have the shape of the image.
    own = int(backend != "auto" and bool(leaves) and sample.get(goal.differentiable[0]) is sample.tensors()[0])
    check_format(goal, sample, ours[: outputs + own])


def _references(goal: Target, sample: Sample, plain: bool) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """The reference in the dtype of the call and in float64, and the largest error of each of its results. Where stock
    PyTorch is taken (`plain`), it is as exact as it is."""
    with backends.backend("reference"):
        same_dtype = evaluate(goal.reference, goal, sample)
        oracle = evaluate(goal.reference, goal, sample.map(_double))
    errors = [_error(e, o) for e, o in zip(same_dtype, oracle, strict=True)]
    if goal.eager and plain:
        for given_ in (sample, sample.map(_dense)):  # which PyTorch may round differently
            with contextlib.suppress(RuntimeError):  # of parameters of two dtypes, for which it is not taken
                stock = evaluate(goal.eager, goal, given_)
                errors = [max(r, _error(s, o)) for r, s, o in zip(errors, stock, oracle, strict=True)]
    return same_dtype, oracle, errors


def _dense(t: Tensor) -> Tensor:
    return t.contiguous()


_BY_TILES = ("conv3x3", "conv4x4", "upsample_conv2d")


def _depends_on_order(goal: Target, sample: Sample) -> bool:
    """Whether an infinity makes a NaN or none, depending on what is added first: times weights of both signs, or with
    the zero that a weight outside of an image is multiplied with; or in a tile whose differences are transformed, where
    a NaN is in all taps of the weight's gradient."""
    if goal.name in _BY_TILES and any(t.isnan().any() for t in sample.tensors()):
        return True
    if goal.eager is None or not any(t.isinf().any() for t in sample.tensors()):
        return False
    if goal.name in _BY_TILES or not goal.cancels(sample):
        return goal.name in _BY_TILES
    sample = sample.map(_double)
    with backends.backend("reference"):
        ours = evaluate(goal.reference, goal, sample)
    stock = evaluate(goal.eager, goal, sample)
    return any((s.isnan() != o.isnan()).any() for s, o in zip(stock, ours, strict=True))


def _at_a_kink(goal: Target, sample: Sample) -> bool:
    """Whether rounding decides on which side of zero a ReLU is, and so on its slope."""
    if sample.kwargs.get("activation") not in ("relu", "leaky_relu"):
        return False
    with backends.backend("reference"), torch.no_grad():
        call = sample.map(_double).replace({"activation": "identity"})
        call = call.replace({i: call.get(i).clone() for i in goal.written if isinstance(call.get(i), Tensor)})
        y = battery.as_tuple(goal.reference(*call.args, **call.kwargs))[0]
    return bool((y.abs() <= 16 * torch.finfo(torch.float32).eps * _largest(y)).any())


def _error(e: Tensor, o: Tensor) -> float:
    return _largest(e.double() - o.double())


def _errors_beside(goal: Target, sample: Sample, plain: bool, errors: list[float]) -> list[float]:
    """The largest errors of the reference among some calls whose arguments differ from these by rounding."""
    generator = torch.Generator().manual_seed(1)

    def move(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        units = torch.randint(-4, 5, t.shape, generator=generator).to(t.dtype)
        return t * (1 + units * torch.finfo(t.dtype).eps)

    for _ in range(32):
        found = _references(goal, sample.map(move), plain)[2]
        errors = [max(pair) for pair in zip(errors, found, strict=True)]
    return errors


def _largest(t: Tensor) -> float:
    finite = t[t.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def _rounding(dtype: torch.dtype) -> float:
    """Of one operation in the precision that sums are taken in; in float64, where the oracle is off too, of many."""
    return 64 * torch.finfo(dtype).eps if dtype == torch.float64 else torch.finfo(torch.float32).eps


def disagreement(t: Tensor, e: Tensor, o: Tensor, dtype: torch.dtype, allowed: float, sums: bool) -> str:
    """What is wrong with `t`, given the reference in its dtype, `e`, and in float64, `o`, and what it may differ by
    besides the rounding of the result; or an empty string."""
    if t.shape != o.shape or t.dtype != e.dtype:
        return f"{t.dtype} {tuple(t.shape)}, expected {e.dtype} {tuple(o.shape)}"
    eps = torch.finfo(t.dtype).eps
    t, e, o = t.double(), e.double(), o.double()
    lost = t.isnan() & (e.isfinite() if sums else ~e.isnan())  # inf times a sum is inf, the sum of infs may be NaN
    if lost.any():
        return f"NaN where the reference has {e[lost][0].item():g}"
    if (t.isfinite() & e.isnan() & o.isnan()).any():
        return f"{t[t.isfinite() & e.isnan() & o.isnan()][0].item():g} where the reference has NaN"
    infinite = o.isinf() & (e == o) & ~t.isnan()
    if (t != o)[infinite].any():
        return f"{t[infinite & (t != o)][0].item():g} where the reference has {o[infinite & (t != o)][0].item():g}"
    finite = o.isfinite() & e.isfinite()
    if not finite.any():
        return ""
    t, e, o = t[finite], e[finite], o[finite]
    slack = 64 if dtype == torch.float64 else 2
    bound = allowed + slack * eps * o.abs().clamp(min=1e-3)
    error = (t - o).abs()
    if not (error > bound).any():
        return ""
    worst = (error / bound).argmax()
    return f"{t[worst].item():.9g}, float64 says {o[worst].item():.9g}, the reference {e[worst].item():.9g}"


#: The identity, torch's own convolution, and what is made of another shape.
_OWN_FORMAT = ("clamp_logvar", "critic_conv2d", "logistic_mixture_nll", "logistic_mixture_sample")


#: Arguments that decide the memory format, where they are not the first.
_DECIDES: dict[str, int | str] = {"generator_loss": "real"}


def check_format(goal: Target, sample: Sample, ours: list[Tensor]) -> None:
    """What has the rank of a channels_last input, and was made from nothing else, is channels_last."""
    first = sample.get(_DECIDES.get(goal.name, 0))
    first = first if isinstance(first, Tensor) else sample.tensors()[0]
    form = {4: torch.channels_last, 5: torch.channels_last_3d}.get(first.dim())
    if form is None or 1 in first.shape or 0 in first.shape or goal.name in _OWN_FORMAT:
        return
    if first.is_contiguous(memory_format=form) and not first.is_contiguous():
        for i, t in enumerate(ours):
            if t.shape == first.shape:
                assert t.is_contiguous(memory_format=form), f"result {i}: strides {t.stride()}, expected channels_last"


def _check_images(sample: Sample, ours: Tensor, again: Tensor) -> None:
    """Draws are equal on every backend, in [-1, 1], and on the bins to the dtype's rounding."""
    assert _same(ours, again), "other draws on the reference"
    parameters = sample.args[0]
    fine = ours.double()[parameters.isfinite().all(1, keepdim=True).expand(ours.shape)]
    assert (fine.abs() <= 1).all(), "outside of [-1, 1]"
    places = (fine + 1) * (sample.kwargs["bins"] - 1) / 2
    slack = torch.finfo(ours.dtype).eps * sample.kwargs["bins"] + 1e-9
    assert ((places - places.round()).abs() <= slack).all(), "off the bins"


def run(name: str, cases: int, *, seed_: int) -> Outcome:
    """So many random calls of one op."""
    outcome, goal = Outcome("properties", name), target(name)
    available = [s.name for s in backends.status() if s.available and s.name in ("cpp", "reference")]

    @seed(seed_)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(st.data())
    def prove(data: st.DataObject) -> None:
        draw = Draw(data)
        sample = CALLS[name](draw)
        backend = draw.one(*(("auto", "cpp") if "cpp" in available else ("auto",)))
        outcome.cases += 1
        try:
            check(goal, sample, backend)
        except Exception as error:
            shown = ", ".join(map(text, sample.args)), ", ".join(f"{k}={text(v)}" for k, v in sample.kwargs.items())
            raise AssertionError(f"{name}({', '.join(s for s in shown if s)}), {backend}: {error}") from error

    with outcome, redirect_stdout(io.StringIO()):
        try:
            prove()
        except Exception as error:
            for one in getattr(error, "exceptions", [error]):  # hypothesis groups several
                outcome.fail(f"{type(one).__name__}: {one}"[:1500])
    return outcome


@functools.cache
def names() -> tuple[str, ...]:
    """Every public op."""
    return tuple(ops.__all__)
