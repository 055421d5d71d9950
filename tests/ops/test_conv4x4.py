"""The conv4x4 family: what the battery cannot know."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import genmod
from genmod import _native, backends, nn, ops

NATIVE = pytest.mark.skipif(not _native.loaded, reason=f"no C++ kernels: {_native.reason}")
both_formats = pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["planes", "pixels"])
both_ways = pytest.mark.parametrize("transposed", [False, True], ids=["halved", "doubled"])


def stock(x, weight, bias=None, transposed=False):
    return (F.conv_transpose2d if transposed else F.conv2d)(x, weight, bias, stride=2, padding=1)


def inputs(batch, small, large, height, width, transposed, form=torch.contiguous_format, dtype=torch.float32, seed=0):
    """The image that is halved or doubled, the smaller map being `height` by `width`, and the weight."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, small, height, width) if transposed else (batch, large, 2 * height, 2 * width)
    x = torch.randn(shape, generator=generator, dtype=torch.double)
    scale = ((4 if transposed else 16) * shape[1]) ** -0.5
    weight = torch.randn(small, large, 4, 4, generator=generator, dtype=torch.double) * scale
    return x.to(dtype).contiguous(memory_format=form), weight.to(dtype).contiguous(memory_format=form)


# Weights smaller and larger than the patches; tiles in one stretch and in several; and a few channels on one side.
SHAPES = [(2, 48, 64, 17, 15), (1, 16, 16, 4, 65), (9, 80, 48, 3, 3), (1, 32, 256, 5, 4), (3, 96, 160, 8, 8)]
SHAPES += [(3, 512, 128, 2, 4), (40, 128, 64, 14, 15)]
SHAPES += [(3, 64, 3, 17, 15), (2, 16, 1, 4, 70), (2, 48, 4, 5, 67), (4, 32, 2, 3, 3)]


@NATIVE
@both_formats
@both_ways
@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_is_that_of_a_convolution(form, transposed, shape):
    """Values and both gradients against float64, beside what PyTorch's own kernels make."""
    x, weight = inputs(*shape, transposed, form)
    exact = stock(x.double(), weight.double(), transposed=transposed)
    incoming = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=form)

    def results(op, dtype):
        leaves = [t.to(dtype).clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, weight)]
        y = op(*leaves)
        return y.detach(), *torch.autograd.grad(y, leaves, incoming.to(dtype))

    with genmod.backend("cpp"):
        ours = results(lambda x, w: ops.conv4x4(x, w, transposed=transposed), torch.float32)
    theirs = results(lambda x, w: stock(x, w, transposed=transposed), torch.float32)
    right = results(lambda x, w: stock(x, w, transposed=transposed), torch.float64)
    for name, o, t, r in zip(("value", "image", "weight"), ours, theirs, right, strict=True):
        assert (o - r).abs().max() < 2 * (t - r).abs().max(), name


@NATIVE
@both_ways
def test_a_mean_far_from_zero(transposed):
    x, weight = inputs(1, 32, 48, 6, 5, transposed)
    exact = stock((x + 1000).double(), weight.double(), transposed=transposed)
    with genmod.backend("cpp"):
        error = (ops.conv4x4(x + 1000, weight, transposed=transposed) - exact).abs().max()
    assert error < 2 * (stock(x + 1000, weight, transposed=transposed) - exact).abs().max()


@NATIVE
@both_ways
@pytest.mark.parametrize("channels", [16, 10])
@pytest.mark.parametrize("last", [0, 1], ids=["image in channels_last", "weight in channels_last"])
def test_image_and_weight_in_different_formats(transposed, channels, last):
    tensors = list(inputs(2, channels, 24, 5, 4, transposed))
    tensors[last] = tensors[last].contiguous(memory_format=torch.channels_last)
    results = []
    for op in (ops.conv4x4, stock):
        leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
        with genmod.backend("cpp"):
            y = op(*leaves, transposed=transposed)
            found = torch.autograd.grad(y.square().sum(), leaves)
        results.append((y.detach(), *found))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)
    assert all(f.stride() == t.stride() for f, t in zip(results[0][1:], tensors))


@NATIVE
@both_ways
def test_a_batch_that_is_copied_in_parts(transposed):
    """Plane by plane, some images at a time are turned there and back."""
    x, weight = inputs(9, 16, 32, 72, 70, transposed)
    bias = torch.randn(weight.shape[1 if transposed else 0])
    with genmod.backend("cpp"):
        found = ops.conv4x4(x, weight, bias, transposed=transposed)
    torch.testing.assert_close(found, stock(x, weight, bias, transposed), rtol=1e-4, atol=1e-4)


@NATIVE
@both_formats
@both_ways
def test_same_bits_on_any_number_of_threads(form, transposed):
    x, weight = inputs(3, 32, 32, 11, 9, transposed, form)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with genmod.backend("cpp"):
                y = torch.ops.genmod.conv4x4(x, weight, None, transposed)
                pair = (x, y) if transposed else (y, x)
                results.append((y, torch.ops.genmod.conv4x4_weight_gradient(*pair)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for r in results for a, b in zip(r, results[0]))


@NATIVE
@both_formats
def test_same_bits_of_a_few_channels_on_any_number_of_threads(form):
    x, weight = inputs(5, 32, 3, 40, 9, False, form)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with genmod.backend("cpp"):
                y = torch.ops.genmod.conv4x4(x, weight, None, False)
                back = torch.ops.genmod.conv4x4(y, weight, None, True)
                results.append((y, back, torch.ops.genmod.conv4x4_weight_gradient(y, x)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for r in results for a, b in zip(r, results[0]))


@NATIVE
@both_formats
def test_a_nan_stays_near(form):
    """Within the tiles that see it; a result beyond them does not."""
    x, weight = inputs(1, 16, 16, 12, 12, False, form)
    x[0, 3, 11, 11] = float("nan")  # results 5 and 6 see it
    with genmod.backend("cpp"):
        bad = ops.conv4x4(x, weight).isnan().any(1)[0]
    assert bad[5:7, 5:7].all() and not bad[:4].any() and not bad[:, :4].any()
    assert not bad[8:].any() and not bad[:, 8:].any()


@both_ways
@pytest.mark.parametrize("backend", ["reference", "cpp", "triton"])
def test_transposed_is_the_gradient_by_the_input(backend, transposed):
    status = {s.name: s for s in genmod.backends.status()}[backend]
    if not status.available:
        pytest.skip(f"{backend}: {status.reason}")
    x, weight = inputs(2, 3, 5, 3, 4, transposed, dtype=torch.double)
    leaf = x.requires_grad_()
    y = stock(leaf, weight, transposed=transposed)
    grad = torch.randn_like(y)
    with genmod.backend(backend):
        found = torch.ops.genmod.conv4x4(grad, weight, None, not transposed)
    torch.testing.assert_close(found, torch.autograd.grad(y, leaf, grad)[0])


@both_ways
def test_third_derivatives(transposed):
    def derivatives(op):
        x, weight = (t.requires_grad_() for t in inputs(1, 2, 3, 2, 1, transposed, dtype=torch.double))
        loss, found = op(x, weight, transposed=transposed).pow(3).sum(), []
        for _ in range(3):
            grads = torch.autograd.grad(loss, (x, weight), create_graph=True)
            loss = sum(g.square().sum() for g in grads)
            found += grads
        return found

    with genmod.backend("auto" if not _native.loaded else "cpp"):
        found = derivatives(ops.conv4x4)
    torch.testing.assert_close(found, derivatives(stock))


def test_small_calls_and_other_dtypes_take_pytorch_s_own():
    x, weight = inputs(1, 8, 8, 4, 4, False)
    assert torch.equal(ops.conv4x4(x, weight), stock(x, weight))
    assert "PyTorch" in backends.why_plain("conv4x4", x, weight)
    x, weight = inputs(4, 64, 64, 16, 16, False)
    assert backends.why_plain("conv4x4", x, weight) == ""
    assert backends.why_plain("conv4x4", x.bfloat16(), weight.bfloat16())


@both_ways
def test_under_torch_func_and_compile(transposed):
    x, weight = inputs(8, 32, 32, 16, 16, transposed)

    def loss(x, weight, op=ops.conv4x4):
        return op(x, weight, transposed=transposed).square().mean()

    expected = torch.func.grad(lambda x, w: loss(x, w, stock), argnums=(0, 1))(x, weight)
    torch.testing.assert_close(torch.func.grad(loss, argnums=(0, 1))(x, weight), expected)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    found = torch.autograd.grad(compiled(*leaves), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(nn.Conv4x4, torch.nn.Conv2d), (nn.ConvTranspose4x4, torch.nn.ConvTranspose2d)]
)
def test_modules_are_convolutions(ours, theirs):
    module, other = ours(32, 48), theirs(32, 48, 4, 2, 1)
    module.load_state_dict(other.state_dict())
    x = torch.randn(8, 32, 16, 16)
    torch.testing.assert_close(module(x), other(x), rtol=1e-4, atol=1e-5)
    for options, match in (({"kernel_size": 5}, "kernel_size"), ({"stride": 1}, "stride"), ({"groups": 4}, "groups")):
        with pytest.raises(ValueError, match=match):
            ours(8, 8, **options)


def test_the_one_output_size():
    module, x = nn.ConvTranspose4x4(3, 2), torch.randn(1, 3, 4, 5)
    assert module(x, output_size=[8, 10]).shape == (1, 2, 8, 10)
    with pytest.raises(ValueError, match="output_size"):
        module(x, output_size=[9, 10])


@NATIVE
def test_critics_and_generators_take_the_same_kernels():
    """Under a gradient penalty too: convolution, transposed convolution and weight's gradient, twice."""
    x, weight = inputs(32, 64, 64, 8, 8, False)

    def penalty(op):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        (slope,) = torch.autograd.grad(op(*leaves).square().sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(slope.square().mean(), leaves)

    with torch.profiler.profile() as profile:
        found = penalty(lambda x, w: ops.critic_conv2d(x, w, None, 2, 1))
    names = {event.name for event in profile.events()}
    assert {"genmod::conv4x4", "genmod::conv4x4_weight_gradient"} <= names
    for f, e in zip(found, penalty(stock), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-3, atol=1e-3 * e.abs().max().item())
    y, image = torch.randn(32, 64, 8, 8), weight
    scale, shift = torch.ones(64), torch.zeros(64)
    with torch.profiler.profile() as profile:
        ops.conv_transpose2d_norm_act(y, image, None, None, scale, shift, True, stride=2, padding=1)
    assert "genmod::conv4x4" in {event.name for event in profile.events()}
