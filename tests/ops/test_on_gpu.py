"""What only a GPU can show, for every op: graph capture, streams, other devices, and one noise for all backends."""

from __future__ import annotations

import itertools

import pytest
import torch

from genmod import backends, ops
from genmod.specs import specs
from genmod.testing import battery

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
every_op = pytest.mark.parametrize("spec", specs().values(), ids=specs())


def some_samples(spec, device=CUDA):
    """One in seven of those that are not empty and draw no noise: each call draws other noise."""
    for sample in itertools.islice(battery.samples(spec, device, torch.float32), 0, None, 7):
        before = torch.cuda.get_rng_state(device)
        spec.public(*sample.args, **sample.kwargs)
        if sample.tensors()[0].numel() and torch.equal(before, torch.cuda.get_rng_state(device)):
            yield sample


def same(spec, sample, found, expected):
    for i, (f, e) in enumerate(zip(found, expected, strict=True)):
        message = f"{spec.name}, {sample.name}, result {i}"
        torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-5, equal_nan=True, msg=message)


@every_op
def test_graph_capture(spec):
    """Forward and backward in one CUDA graph, replayed on other numbers."""
    for sample in some_samples(spec):
        call, leaves = battery.with_grad(spec, sample)
        if not leaves:
            continue

        def run(call=call, leaves=leaves, incoming=()):
            outputs = battery.as_tuple(spec.public(*call.args, **call.kwargs))
            incoming = incoming or battery.cotangents(outputs)
            return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, incoming)]

        incoming = battery.cotangents(battery.as_tuple(spec.public(*call.args, **call.kwargs)))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                run(incoming=incoming)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = run(incoming=incoming)
        with torch.no_grad():
            for leaf in leaves:
                if 0 not in leaf.stride():
                    leaf.mul_(0.5)
        graph.replay()
        same(spec, sample, found, run(incoming=incoming))


@every_op
def test_streams(spec):
    """Calls go to the current stream: what another stream has still to write is not read before it is there."""
    for sample in some_samples(spec):
        expected = battery.values_and_grads(spec.public, spec, sample)
        late = sample.map(lambda t: torch.full_like(t, 0.5) if t.is_floating_point() else t.clone())
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)  # about ten milliseconds
            for target, source in zip(late.tensors(), sample.tensors(), strict=True):
                if 0 not in target.stride():
                    target.copy_(source)
            found = battery.values_and_grads(spec.public, spec, late)
        torch.cuda.current_stream().wait_stream(side)
        same(spec, sample, found, expected)


@every_op
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_another_device(spec):
    """Tensors decide on the device, not the current one."""
    other = torch.device("cuda", 1)
    for sample in some_samples(spec):
        expected = battery.values_and_grads(spec.public, spec, sample)
        found = battery.values_and_grads(spec.public, spec, sample.map(lambda t: t.to(other)))
        assert all(f.device == other for f in found)
        same(spec, sample, [f.to(CUDA) for f in found], expected)


@pytest.mark.parametrize("shape", [(5, 7), (64, 1000), (3, 8, 33, 31), (1 << 20,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_backend_draws_the_same_noise(shape, dtype):
    """One key, one noise: the reference and C++ on the CPU, Triton and CUDA C++ on the GPU."""
    seed = torch.tensor(0x123456789ABCDEF)
    mean, logvar = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    expected = backends.implementation("reference", "reparameterize")(mean, logvar, None, seed, "none")
    drawn = {"cpu": torch.ops.genmod.reparameterize(mean, logvar, None, seed, "none")}
    on_gpu = [t.cuda() for t in (mean, logvar, seed)]
    for name in ("triton", "cuda"):
        if {s.name: s for s in backends.status()}[name].available:
            mean, logvar, seed = on_gpu
            drawn[name] = backends.implementation(name, "reparameterize")(mean, logvar, None, seed, "none").cpu()
    for name, z in drawn.items():
        bound = 2e-6 if dtype == torch.float32 else 2**-7
        error = (z.float() - expected.float()).abs() / expected.float().abs().clamp(min=1)
        assert error.max() <= bound, f"{name}: {error.max():.3g}"


def test_the_seed_decides_on_a_gpu_too():
    mean = torch.randn(64, 32, device=CUDA)
    draws = []
    for _ in range(2):
        torch.manual_seed(7)
        draws.append(ops.reparameterize(mean, mean))
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], ops.reparameterize(mean, mean))


def test_a_graph_draws_new_noise_each_time():
    mean, logvar = torch.zeros(64, 32, device=CUDA), torch.zeros(64, 32, device=CUDA)
    ops.reparameterize(mean, logvar)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z = ops.reparameterize(mean, logvar)
    graph.replay()
    first = z.clone()
    graph.replay()
    assert not torch.equal(first, z)
    assert 0.8 < z.std() < 1.2
