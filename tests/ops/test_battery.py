"""Every op, on every backend that this machine has, through the whole battery of genmod.testing.battery."""

from __future__ import annotations

import dataclasses
import itertools
import zlib

import pytest
import torch

import genmod
from genmod import backends
from genmod.specs import specs
from genmod.testing import battery

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ON_CPU, ON_GPU = ("reference", "cpp", "triton"), ("reference", "triton", "cuda")
TARGETS = [pytest.param("cpu", name, id=f"cpu-{name}") for name in ON_CPU] + [
    pytest.param("cuda", name, id=f"cuda-{name}", marks=pytest.mark.gpu) for name in ON_GPU
]

# As an ordinary caller has it, with stock PyTorch where that is faster, which has its own layouts, keeps more for
# backward, and gives other bits on another number of threads.
AUTO = [pytest.param("cpu", "auto", id="cpu-auto"), pytest.param("cuda", "auto", id="cuda-auto", marks=pytest.mark.gpu)]

every_target = pytest.mark.parametrize(("device", "backend"), TARGETS, indirect=["backend"])
every_target_and_auto = pytest.mark.parametrize(("device", "backend"), TARGETS + AUTO, indirect=["backend"])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@pytest.fixture(params=specs().values(), ids=specs())
def spec(request):
    """An op; where the backend is Triton's interpreter, which takes a tenth of a second per kernel, with one in six of
    its samples, other ones in each test."""
    backend = request.node.callspec.params.get("backend")
    if backend != "triton" or request.node.callspec.params.get("device") != "cpu":
        return request.param
    start = zlib.crc32(request.node.name.encode()) % 6

    def some(device, dtype):
        return itertools.islice(request.param.samples(device, dtype), start, None, 6)

    return dataclasses.replace(request.param, samples=some)


@pytest.fixture
def backend(request):
    name = request.param
    if name == "auto":
        yield name
        return
    status = {s.name: s for s in backends.status()}[name]
    if not status.available:
        pytest.skip(f"{name}: {status.reason}")
    op = request.node.callspec.params["spec"]
    if not all(backends.has_kernel(name, each) for each in op.dispatcher_ops):
        pytest.skip(f"{op.name} has no kernel in CUDA C++")
    with genmod.backend(name):
        yield name


@every_target_and_auto
@every_dtype
def test_accuracy(spec, device, backend, dtype):
    battery.accuracy(spec, torch.device(device), dtype)


@every_target_and_auto
def test_gradients(spec, device, backend):
    if backend == "triton" and device == "cpu":
        pytest.skip("finite differences through the interpreter take minutes; accuracy compares its gradients")
    battery.gradients(spec, torch.device(device))


@every_target_and_auto
def test_every_subset_of_gradients(spec, device, backend):
    battery.every_subset_of_gradients(spec, torch.device(device))


@every_target_and_auto
def test_nothing_is_written_to(spec, device, backend):
    battery.nothing_is_written_to(spec, torch.device(device))


@every_target_and_auto
def test_default_device(spec, device, backend):
    battery.default_device(spec, torch.device(device))


@every_target_and_auto
def test_outputs_changed_in_place(spec, device, backend):
    battery.outputs_changed_in_place(spec, torch.device(device))


@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_determinism(spec, device, backend, dtype):
    battery.determinism(spec, torch.device(device), dtype)


@every_target
def test_memory_format(spec, device, backend):
    battery.memory_format(spec, torch.device(device))


@every_target_and_auto
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["float32", "float64", "bfloat16"]
)
def test_not_a_number(spec, device, backend, dtype):
    battery.not_a_number(spec, torch.device(device), dtype)


@every_target
def test_kept_for_backward(spec, device, backend):
    battery.kept_for_backward(spec, torch.device(device))


@every_target
def test_autocast(spec, device, backend):
    battery.autocast(spec, torch.device(device))


def test_traced(spec):
    battery.traced(spec, torch.device("cpu"))


def test_opcheck_reaches_every_dispatcher_op(spec):
    assert battery.opcheck(spec, torch.device("cpu")) == set(spec.dispatcher_ops)


@pytest.mark.gpu
def test_opcheck_on_gpu(spec):
    battery.opcheck(spec, torch.device("cuda"))


def test_bad_calls(spec):
    battery.bad_calls(spec)
