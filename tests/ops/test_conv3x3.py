"""The conv3x3 family: what the battery cannot know."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import genmod
from genmod import _native, backends, nn, ops

NATIVE = pytest.mark.skipif(not _native.loaded, reason=f"no C++ kernels: {_native.reason}")
both_formats = pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["planes", "pixels"])


def inputs(shape, outputs, form=torch.contiguous_format, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.double)
    weight = torch.randn(outputs, shape[1], 3, 3, generator=generator, dtype=torch.double) * (9 * shape[1]) ** -0.5
    return x.to(dtype).contiguous(memory_format=form), weight.to(dtype).contiguous(memory_format=form)


@NATIVE
@both_formats
@pytest.mark.parametrize(
    ("shape", "outputs"), [((2, 64, 33, 31), 48), ((1, 16, 8, 130), 16), ((9, 48, 4, 4), 80), ((1, 256, 7, 7), 32)]
)
def test_rounding_is_that_of_a_convolution(form, shape, outputs):
    """Values and the gradient of the image against float64, beside what PyTorch's own kernels make."""
    x, weight = inputs(shape, outputs, form)
    incoming = torch.randn(shape[0], outputs, *shape[2:], generator=torch.Generator().manual_seed(1))
    errors = {}
    for name, call in (("genmod", ops.conv3x3), ("torch", lambda x, w: F.conv2d(x, w, padding=1))):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        with genmod.backend("cpp"):
            y = call(leaf, weight)
            (gradient,) = torch.autograd.grad(y, leaf, incoming)
        wide = x.double().requires_grad_()
        exact = F.conv2d(wide, weight.double(), padding=1)
        (slope,) = torch.autograd.grad(exact, wide, incoming.double())
        errors[name] = (y - exact).abs().max().item(), (gradient - slope).abs().max().item()
    assert all(ours < 2 * theirs for ours, theirs in zip(errors["genmod"], errors["torch"])), errors


@NATIVE
def test_a_constant_image_and_a_mean_far_from_zero():
    x, weight = inputs((1, 32, 12, 10), 16)
    exact = F.conv2d((x + 1000).double(), weight.double(), padding=1)
    with genmod.backend("cpp"):
        error = (ops.conv3x3(x + 1000, weight) - exact).abs().max()
    assert error < 2 * (F.conv2d(x + 1000, weight, padding=1) - exact).abs().max()


@NATIVE
@pytest.mark.parametrize("channels", [16, 10])
@pytest.mark.parametrize("last", [0, 1], ids=["image in channels_last", "weight in channels_last"])
def test_image_and_weight_in_different_formats(channels, last):
    tensors = list(inputs((2, channels, 9, 8), 16))
    tensors[last] = tensors[last].contiguous(memory_format=torch.channels_last)
    results = []
    for op in (ops.conv3x3, lambda x, w: F.conv2d(x, w, padding=1)):
        leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
        with genmod.backend("cpp"):
            y = op(*leaves)
            found = torch.autograd.grad(y.square().sum(), leaves)
        results.append((y.detach(), *found))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)
    assert all(f.stride() == t.stride() for f, t in zip(results[0][1:], tensors))


@NATIVE
@both_formats
@pytest.mark.parametrize(
    ("shape", "outputs"),
    [((2, 64, 33, 31), 48), ((40, 16, 16, 16), 16), ((1, 160, 40, 72), 96), ((1, 40, 215, 150), 50)],
)
def test_rounding_of_the_weight_s_gradient(form, shape, outputs):
    """Also over several stretches of tiles."""
    x, weight = inputs(shape, outputs, form)
    grad = torch.randn(shape[0], outputs, *shape[2:], generator=torch.Generator().manual_seed(1))
    grad = grad.contiguous(memory_format=form)
    exact = torch.nn.grad.conv2d_weight(x.double(), weight.shape, grad.double(), padding=1)
    ours = torch.ops.genmod.conv3x3_weight_gradient(grad, x)
    theirs = torch.nn.grad.conv2d_weight(x, weight.shape, grad, padding=1)
    assert (ours - exact).abs().max() < 2 * (theirs - exact).abs().max()


@NATIVE
@both_formats
def test_same_bits_on_any_number_of_threads(form):
    x, weight = inputs((3, 32, 21, 18), 32, form)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with genmod.backend("cpp"):
                y = torch.ops.genmod.conv3x3(x, weight, None, False)
                results.append((y, torch.ops.genmod.conv3x3_weight_gradient(y, x)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for r in results for a, b in zip(r, results[0]))


@NATIVE
@both_formats
def test_what_is_not_finite_stays_where_a_convolution_has_it_or_near(form):
    """Within the 4x4 patches that a NaN is part of; a result beyond them does not see it."""
    x, weight = inputs((1, 16, 16, 16), 16, form)
    x[0, 3, 8, 8] = float("nan")
    with genmod.backend("cpp"):
        bad = ops.conv3x3(x, weight).isnan().any(1)[0]
    assert bad[7:10, 7:10].all() and not bad[:6].any() and not bad[:, :6].any()
    assert not bad[10:].any() and not bad[:, 10:].any()


@pytest.mark.parametrize("backend", ["reference", "cpp", "triton"])
def test_transposed_is_the_gradient_by_the_input(backend):
    status = {s.name: s for s in genmod.backends.status()}[backend]
    if not status.available:
        pytest.skip(f"{backend}: {status.reason}")
    x, weight = inputs((2, 5, 6, 7), 3, dtype=torch.double)
    grad = torch.randn(2, 3, 6, 7, dtype=torch.double)
    with genmod.backend(backend):
        found = torch.ops.genmod.conv3x3(grad, weight, None, True)
    torch.testing.assert_close(found, torch.nn.grad.conv2d_input(x.shape, weight, grad, padding=1))


def test_third_derivatives():
    def derivatives(op):
        x, weight = (t.requires_grad_() for t in inputs((1, 2, 4, 3), 2, dtype=torch.double))
        loss, found = op(x, weight).pow(3).sum(), []
        for _ in range(3):
            grads = torch.autograd.grad(loss, (x, weight), create_graph=True)
            loss = sum(g.square().sum() for g in grads)
            found += grads
        return found

    with genmod.backend("auto" if not _native.loaded else "cpp"):
        found = derivatives(ops.conv3x3)
    torch.testing.assert_close(found, derivatives(lambda x, w: F.conv2d(x, w, padding=1)))


def test_small_calls_and_other_dtypes_take_pytorch_s_own():
    x, weight = inputs((1, 8, 4, 4), 8)
    assert torch.equal(ops.conv3x3(x, weight), F.conv2d(x, weight, padding=1))
    assert "PyTorch" in backends.why_plain("conv3x3", x, weight)
    x, weight = inputs((1, 64, 32, 32), 64)
    assert backends.why_plain("conv3x3", x, weight) == ""
    assert backends.why_plain("conv3x3", x.bfloat16(), weight.bfloat16())


def test_under_torch_func_and_compile():
    x, weight = inputs((2, 32, 16, 16), 32)

    def loss(x, weight):
        return ops.conv3x3(x, weight).square().mean()

    expected = torch.func.grad(lambda x, w: F.conv2d(x, w, padding=1).square().mean(), argnums=(0, 1))(x, weight)
    torch.testing.assert_close(torch.func.grad(loss, argnums=(0, 1))(x, weight), expected)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    found = torch.autograd.grad(compiled(*leaves), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_module_is_a_convolution():
    module, stock = nn.Conv3x3(32, 16), torch.nn.Conv2d(32, 16, 3, padding=1)
    module.load_state_dict(stock.state_dict())
    x = torch.randn(2, 32, 16, 16)
    torch.testing.assert_close(module(x), stock(x), rtol=1e-4, atol=1e-5)
    for options, match in (({"kernel_size": 5}, "kernel_size"), ({"stride": 2}, "stride"), ({"groups": 4}, "groups")):
        with pytest.raises(ValueError, match=match):
            nn.Conv3x3(8, 8, **options)
