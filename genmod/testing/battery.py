"""What every op must pass, whatever it computes. Each check takes an op's spec and runs all of its samples.

`tests/ops/test_battery.py` applies them to every op, backend and dtype; a project with ops of its own can do the same.
A check raises AssertionError with the op, the sample and what differed.
"""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genmod import backends
from genmod.registry import OpSpec, Sample

#: What an output is allowed to be off by, beyond twice eager's own error: its own rounding, and in float64, where eager
#: serves as the oracle itself, the rounding of eager.
_SLACK = {torch.float64: 64, torch.float32: 2, torch.bfloat16: 1, torch.float16: 1}


def samples(spec: OpSpec, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Iterator[Sample]:
    """The spec's samples, the same numbers every time."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield from list(spec.samples(device, dtype))
    finally:
        torch.random.set_rng_state(state)


def as_tuple(value: Any) -> tuple[Tensor, ...]:
    """An op's outputs, one or several, as a tuple."""
    return (value,) if isinstance(value, Tensor) else tuple(value)


def with_grad(spec: OpSpec, sample: Sample, chosen: tuple[int | str, ...] | None = None) -> tuple[Sample, list[Tensor]]:
    """The sample with detached inputs, of which those `chosen` require a gradient; and those inputs."""
    sample = sample.map(lambda t: t.detach())
    leaves = {i: sample.get(i).requires_grad_() for i in given(spec, sample) if chosen is None or i in chosen}
    return sample.replace(dict(leaves)), list(leaves.values())


def given(spec: OpSpec, sample: Sample) -> tuple[int | str, ...]:
    """Which of the differentiable arguments this call gives."""
    return tuple(i for i in spec.differentiable if isinstance(sample.get(i), Tensor))


def cotangents(outputs: tuple[Tensor, ...], seed: int = 1) -> list[Tensor]:
    """Random incoming gradients, short enough in the mantissa to be the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    draw = (torch.randn(o.shape, generator=generator, dtype=torch.float64).to(torch.bfloat16) for o in outputs)
    return [c.to(o.device, o.dtype) for c, o in zip(draw, outputs)]


def _double(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t


def values_and_grads(function: Callable[..., Any], spec: OpSpec, sample: Sample) -> list[Tensor]:
    """All outputs, then the gradients of all differentiable inputs under random incoming gradients."""
    call, leaves = with_grad(spec, sample)
    outputs = as_tuple(function(*call.args, **call.kwargs))
    grads = torch.autograd.grad(outputs, leaves, cotangents(outputs)) if leaves else ()
    return [t.detach() for t in (*outputs, *grads)]


def accuracy(spec: OpSpec, device: torch.device, dtype: torch.dtype) -> None:
    """Values and gradients against float64: the error is at most twice that of eager PyTorch in the same dtype."""
    for sample in samples(spec, device, dtype):
        oracle = values_and_grads(spec.eager, spec, sample.map(_double))
        eager = values_and_grads(spec.eager, spec, sample)
        ours = values_and_grads(spec.public, spec, sample)
        leaves, (of_outputs, of_gradients) = len(given(spec, sample)), spec.magnitude(sample)
        magnitudes = [of_outputs] * (len(ours) - leaves) + [of_gradients] * leaves
        for i, (o, e, t) in enumerate(zip(oracle, eager, ours)):
            where = f"{spec.name}, {sample.name}, {dtype}, result {i}"
            assert t.shape == o.shape, f"{where}: shape {tuple(t.shape)}, expected {tuple(o.shape)}"
            if o.numel() == 0:
                continue
            finite = o.abs() < torch.finfo(t.dtype).max
            o, e, t = o[finite], e.double()[finite], t.double()[finite]
            if o.numel() == 0:
                continue
            bound = 2 * (e - o).abs().max() + _SLACK[dtype] * torch.finfo(ours[i].dtype).eps * o.abs().clamp(min=1e-3)
            summed_in = torch.float64 if dtype == torch.float64 else torch.float32
            bound = bound + torch.finfo(summed_in).eps * (magnitudes[i] + spec.reordering * o.abs().max())
            if dtype == torch.float64:
                bound = bound + 64 * torch.finfo(dtype).eps * max(1.0, o.abs().max().item())
            error = (t - o).abs()
            # NaN in the bound means that eager itself has no value there: nothing to compare with.
            worst = (error - bound).max().item()
            assert not worst > 0, f"{where}: error {error.max().item():.3g}, eager's {(e - o).abs().max().item():.3g}"
            assert not (t.isnan() & ~e.isnan()).any(), f"{where}: NaN where eager has a number"


def _checkable(sample: Sample) -> bool:
    """Whether finite differences mean anything: small, without huge curvature, each element with memory of its own."""
    small = sum(t.numel() for t in sample.tensors()) <= 150
    steep = "far from" in sample.name or "beyond" in sample.name
    return small and not steep and all(0 not in t.stride() for t in sample.tensors())


def gradients(spec: OpSpec, device: torch.device) -> None:
    """gradcheck, and gradgradcheck where the op claims order 2, in float64."""
    for sample in samples(spec, device, torch.float64):
        if not _checkable(sample):
            continue
        call, leaves = with_grad(spec, sample)
        if not leaves:
            continue

        def function(*inputs: Tensor, call: Sample = call) -> Any:
            replaced = call.replace(dict(zip(given(spec, call), inputs, strict=True)))
            return spec.public(*replaced.args, **replaced.kwargs)

        where = f"{spec.name}, {sample.name}"
        try:
            # Fast mode compares a random projection of the Jacobian, which one wrong entry moves too.
            torch.autograd.gradcheck(function, leaves, fast_mode=True)
            if spec.gradient_order >= 2:
                torch.autograd.gradgradcheck(function, leaves, fast_mode=True)
        except Exception as error:
            raise AssertionError(f"{where}: {error}") from error


def every_subset_of_gradients(spec: OpSpec, device: torch.device) -> None:
    """Asking for some gradients gives the same ones as asking for all; asking for some outputs only works too."""
    for sample in samples(spec, device, torch.float32):
        positions = given(spec, sample)
        call, leaves = with_grad(spec, sample)
        outputs = as_tuple(spec.public(*call.args, **call.kwargs))
        grads = dict(zip(positions, torch.autograd.grad(outputs, leaves, cotangents(outputs))))
        for count in range(1, len(positions)):
            for subset in itertools.combinations(positions, count):
                call, leaves = with_grad(spec, sample, subset)
                outputs = as_tuple(spec.public(*call.args, **call.kwargs))
                # An output may depend on none of them.
                depend, incoming = zip(*((o, c) for o, c in zip(outputs, cotangents(outputs)) if o.requires_grad))
                for i, grad in zip(subset, torch.autograd.grad(depend, leaves, incoming)):
                    torch.testing.assert_close(
                        grad, grads[i], equal_nan=True, msg=f"{spec.name}, {sample.name}, {subset}"
                    )
        for k in range(len(outputs) if len(outputs) > 1 else 0):
            got = _grads_of_output(spec, spec.public, sample, k)
            oracle = _grads_of_output(spec, spec.eager, sample.map(_double), k)
            where = f"{spec.name}, {sample.name}: gradients of output {k} alone"
            for g, o in zip(got, oracle, strict=True):
                if g is None or o is None:
                    assert all(t is None or not t.any() for t in (g, o)), where
                elif o.numel():
                    scale = o.abs().max().item()
                    torch.testing.assert_close(g.double(), o, rtol=1e-4, atol=1e-5 * scale, msg=where)


def _grads_of_output(spec: OpSpec, function: Callable[..., Any], sample: Sample, k: int) -> tuple[Tensor | None, ...]:
    call, leaves = with_grad(spec, sample)
    output = as_tuple(function(*call.args, **call.kwargs))[k]
    return torch.autograd.grad(output, leaves, cotangents((output,)), allow_unused=True)


def nothing_is_written_to(spec: OpSpec, device: torch.device) -> None:
    """Inputs and incoming gradients keep their bits and their versions, forward, backward and double backward."""
    for sample in samples(spec, device, torch.float32):
        call, leaves = with_grad(spec, sample)
        if not leaves:
            continue
        given = call.tensors()
        before = [(t.detach().clone(), t._version) for t in given]
        outputs = as_tuple(spec.public(*call.args, **call.kwargs))
        incoming = [c.requires_grad_() for c in cotangents(outputs)]
        copies = [c.detach().clone() for c in incoming]
        grads = torch.autograd.grad(outputs, leaves, incoming, create_graph=True)
        if spec.gradient_order >= 2:
            differentiable = [g for g in grads if g.requires_grad]
            if differentiable:
                torch.autograd.grad([g.square().sum() for g in differentiable], leaves + incoming, allow_unused=True)
        where = f"{spec.name}, {sample.name}"
        for tensor, (copy, version) in zip(given, before):
            assert tensor._version == version and _same_bits(tensor, copy), f"{where}: an input was written to"
        for tensor, copy in zip(incoming, copies):
            assert _same_bits(tensor, copy), f"{where}: an incoming gradient was written to"


def default_device(spec: OpSpec, device: torch.device) -> None:
    """What `torch.set_default_device` names is nothing to a call: everything is on the device of its inputs."""
    for sample in samples(spec, device, torch.float32):
        call, leaves = with_grad(spec, sample)
        drawn = {k: v for k, v in call.kwargs.items() if k != "noise"}
        for options in (call.kwargs, drawn) if "noise" in call.kwargs else (call.kwargs,):
            results: list[tuple[Tensor, ...]] = []
            for default in (device, torch.device("meta")):
                torch.manual_seed(7)
                with default:
                    outputs = as_tuple(spec.public(*call.args, **options))
                incoming = cotangents(outputs)
                with default:
                    results.append((*outputs, *(torch.autograd.grad(outputs, leaves, incoming) if leaves else ())))
            where = f"{spec.name}, {sample.name}"
            for expected, got in zip(*results):
                assert got.device == expected.device, f"{where}: on the default device, {got.device}"
                assert _same_bits(got, expected), f"{where}: other bits with another default device"


def outputs_changed_in_place(spec: OpSpec, device: torch.device) -> None:
    """A caller may change an output in place, as a dropout behind it does: the gradients stay as they were. Autograd
    may refuse the backward only where it refuses that of eager PyTorch."""
    for sample in samples(spec, device, torch.float32):
        call, leaves = with_grad(spec, sample)
        if not leaves:
            continue
        where = f"{spec.name}, {sample.name}"
        kept = _grads_after_change(spec.public, call, leaves, by=0.0)
        try:
            changed = _grads_after_change(spec.public, call, leaves, by=1.0)
        except RuntimeError as error:
            try:
                _grads_after_change(spec.eager, call, leaves, by=1.0)
            except RuntimeError:
                continue
            raise AssertionError(f"{where}: eager's output may be changed in place, but not ours") from error
        assert all(map(_same_bits, changed, kept)), f"{where}: other gradients once the outputs were changed in place"


def _grads_after_change(
    function: Callable[..., Any], call: Sample, leaves: list[Tensor], by: float
) -> tuple[Tensor, ...]:
    outputs = as_tuple(function(*call.args, **call.kwargs))
    for output in outputs:
        if by:
            output.add_(by)
    return torch.autograd.grad(outputs, leaves, cotangents(outputs))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.detach().nan_to_num(nan=12345.0), b.detach().nan_to_num(nan=12345.0))


def determinism(spec: OpSpec, device: torch.device, dtype: torch.dtype) -> None:
    """The same bits twice, on one thread as on several, and with every fresh output filled with NaN beforehand.

    The reference is PyTorch's own operators, whose matrix products may have other bits on one thread (MKL's have, on an
    AMD processor).
    """
    threads = torch.get_num_threads()
    any_threads = spec.any_threads and backends.forced() != "reference"
    for sample in samples(spec, device, dtype):
        try:
            torch.set_num_threads(max(2, threads))
            first = values_and_grads(spec.public, spec, sample)
            again = values_and_grads(spec.public, spec, sample)
            torch.set_num_threads(1 if any_threads else max(2, threads))
            alone = values_and_grads(spec.public, spec, sample)
            torch.set_num_threads(max(2, threads))
            torch.use_deterministic_algorithms(True)  # which fills uninitialised memory with NaN
            poisoned = values_and_grads(spec.public, spec, sample)
        finally:
            torch.use_deterministic_algorithms(False)
            torch.set_num_threads(threads)
        for other, why in ((again, "twice"), (alone, "on one thread"), (poisoned, "in poisoned memory")):
            for i, (a, b) in enumerate(zip(first, other)):
                assert _same_bits(a, b), f"{spec.name}, {sample.name}, {dtype}, result {i}: other bits {why}"


def memory_format(spec: OpSpec, device: torch.device) -> None:
    """An element-wise output or gradient of a channels_last input is channels_last."""
    for sample in samples(spec, device, torch.float32):
        first = sample.tensors()[0]
        if first.dim() != 4 or 1 in first.shape:
            continue
        if not first.is_contiguous(memory_format=torch.channels_last) or first.is_contiguous():
            continue
        for result in values_and_grads(spec.public, spec, sample):
            if result.dim() == 4:
                where = f"{spec.name}, {sample.name}"
                assert result.is_contiguous(memory_format=torch.channels_last), f"{where}: strides {result.stride()}"


class _Calls(TorchDispatchMode):
    """Records the calls of genmod's dispatcher ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "genmod":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def dispatcher_calls(spec: OpSpec, sample: Sample) -> list[tuple[Any, tuple[Any, ...]]]:
    """The dispatcher ops, with arguments, that a forward and a backward of the sample end in; then those that only a
    forward without gradients, or a backward that is to be differentiated, and that, reach."""
    # A backend is forced, so that what is too small to be worth a kernel reaches the dispatcher too.
    with backends.backend("reference"), _Calls() as recorder:
        values_and_grads(spec.public, spec, sample)
    call, leaves = with_grad(spec, sample)
    with backends.backend("reference"), _Calls() as others:
        spec.public(*sample.args, **sample.kwargs)
        outputs = as_tuple(spec.public(*call.args, **call.kwargs))
        if leaves:
            grads = torch.autograd.grad(outputs, leaves, cotangents(outputs), create_graph=True)
            curved = tuple(g for g in grads if g.requires_grad)
            if curved:
                torch.autograd.grad(curved, leaves, cotangents(curved), allow_unused=True)
    seen = {op for op, _ in recorder.calls}
    return recorder.calls + [(op, args) for op, args in others.calls if op not in seen]


def opcheck(spec: OpSpec, device: torch.device, *, every: int = 2) -> set[str]:
    """torch's own checks of every dispatcher op: schema, fake tensors, autograd registration, AOT dispatch.

    They run on each `every`-th sample, the slow AOT check on each tenth of those. Returns the names of the ops reached.
    """
    seen = set()
    parameters = list(inspect.signature(spec.public).parameters)
    names = {parameters[i] if isinstance(i, int) else i for i in spec.differentiable}
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    for number, sample in enumerate(itertools.islice(samples(spec, device, torch.float32), 0, None, every)):
        for op, args in dispatcher_calls(spec, sample):
            seen.add(op._schema.name.split("::")[1])
            tests = (*quick, "test_aot_dispatch_dynamic") if number % 10 == 0 else quick
            detached = tuple(
                a.detach().requires_grad_(a.is_floating_point() and argument.name in names)
                if isinstance(a, Tensor)
                else a
                for a, argument in zip(args, op._schema.arguments)
            )
            try:
                torch.library.opcheck(op, detached, test_utils=tests)
            except Exception as error:
                raise AssertionError(f"{op}, {sample.name}: {error}") from error
    return seen


def traced(spec: OpSpec, device: torch.device, *, every: int = 4) -> None:
    """torch.jit.trace, with gradients on as whoever deploys a model leaves them, makes a graph that gives what the op
    does, and its gradients. `every`: which of the samples."""
    for sample in itertools.islice(samples(spec, device, torch.float32), 0, None, every):
        call, leaves = with_grad(spec, sample)
        if not leaves:
            continue
        names = given(spec, call)

        def function(*inputs: Tensor, call: Sample = call, names: tuple[int | str, ...] = names) -> Any:
            replaced = call.replace(dict(zip(names, inputs, strict=True)))
            outputs = spec.public(*replaced.args, **replaced.kwargs)
            return tuple(outputs) if isinstance(outputs, tuple) else outputs

        with warnings.catch_warnings():  # that shapes are constants of a graph, and that tracing is deprecated
            warnings.simplefilter("ignore")
            graph = torch.jit.trace(function, tuple(leaves))
        results = []
        for made in (function(*leaves), graph(*leaves)):
            outputs = as_tuple(made)
            results.append([*outputs, *torch.autograd.grad(outputs, leaves, cotangents(outputs))])
        torch.testing.assert_close(*results, equal_nan=True, rtol=1e-4, atol=1e-5, msg=f"{spec.name}, {sample.name}")


def not_a_number(spec: OpSpec, device: torch.device, dtype: torch.dtype) -> None:
    """A NaN in one element of an input gives NaN at that element of every output of its shape, and in every scalar;
    and, where the op works element by element, nowhere else."""
    for sample in samples(spec, device, dtype):
        first = sample.tensors()[0]
        packed = len(sample.args) > 1 and sample.args[1] is None
        if first.numel() < 4 or packed or "expanded" in sample.name:
            continue
        place = tuple(s // 2 for s in first.shape)
        for which in given(spec, sample):
            poisoned = sample.get(which).clone()
            if poisoned.shape != first.shape:
                continue
            poisoned[place] = float("nan")
            call = sample.replace({which: poisoned})
            expected = as_tuple(spec.public(*sample.args, **sample.kwargs))
            for i, result in enumerate(as_tuple(spec.public(*call.args, **call.kwargs))):
                where = f"{spec.name}, {sample.name}, input {which}, result {i}"
                if result.shape == first.shape:
                    assert result[place].isnan(), f"{where}: the NaN is gone"
                    result = result.clone()
                    result[place] = expected[i][place]
                    assert not spec.pointwise or _same_bits(result, expected[i]), f"{where}: the NaN spread"
                elif result.dim() == 0:
                    assert result.isnan(), f"{where}: the NaN is gone"


def kept_for_backward(spec: OpSpec, device: torch.device) -> None:
    """Nothing is kept for backward but inputs and what the spec allows besides."""
    for sample in samples(spec, device, torch.float32):
        call, leaves = with_grad(spec, sample)
        if not leaves:
            continue
        allowed = {t.untyped_storage().data_ptr() for t in call.tensors()}
        allowance = spec.kept_bytes(sample)
        without_noise = {k: v for k, v in call.kwargs.items() if k != "noise"}
        for options in (call.kwargs, without_noise):
            kept: list[Tensor] = []

            def pack(t: Tensor, kept: list[Tensor] = kept) -> Tensor:
                kept.append(t)
                return t

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                spec.public(*call.args, **options)
            extra = sum(t.numel() * t.element_size() for t in kept if t.untyped_storage().data_ptr() not in allowed)
            where = f"{spec.name}, {sample.name}"
            assert extra <= allowance, f"{where}: {extra} bytes kept besides the inputs, not {allowance}"


def autocast(spec: OpSpec, device: torch.device) -> None:
    """Autocast changes nothing, as the op computes in float32 or better whatever it is given; or it casts the arguments
    that the spec names, and changes nothing else."""
    for sample in samples(spec, device, torch.float32):
        given = sample.replace({i: sample.get(i).bfloat16() for i in spec.autocasts if sample.get(i) is not None})
        plain = as_tuple(spec.public(*given.args, **given.kwargs))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            cast = as_tuple(spec.public(*sample.args, **sample.kwargs))
        for a, b in zip(plain, cast):
            assert a.dtype == b.dtype and _same_bits(a, b), f"{spec.name}, {sample.name}: autocast changed the result"


def bad_calls(spec: OpSpec) -> None:
    """Each documented error is raised, and its message names what it should."""
    for bad in spec.bad_calls():
        try:
            bad.call()
        except bad.error as error:
            missing = [m for m in bad.mentions if m not in str(error)]
            assert not missing, f"{spec.name}, {bad.name}: the message lacks {missing}: {error}"
        except Exception as error:
            raise AssertionError(
                f"{spec.name}, {bad.name}: {type(error).__name__}, expected {bad.error.__name__}"
            ) from error
        else:
            raise AssertionError(f"{spec.name}, {bad.name}: no error")
