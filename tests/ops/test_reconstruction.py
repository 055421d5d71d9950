"""The reconstruction family: what the battery cannot know."""

from __future__ import annotations

import contextlib
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F

import genmod
from genmod import _native, backends, nn, ops

NATIVE = pytest.mark.skipif(not _native.loaded, reason=f"no C++ kernels: {_native.reason}")
BACKENDS = ["reference", pytest.param("cpp", marks=NATIVE), "triton"]
SCALED = {
    "gaussian": (ops.gaussian_nll, "logvar", "min_logvar"),
    "laplace": (ops.laplace_nll, "log_scale", "min_log_scale"),
    "discretized_logistic": (ops.discretized_logistic_nll, "log_scale", "min_log_scale"),
}
PLAIN = {"bernoulli": ops.bernoulli_nll, "mse": ops.mse, "l1": ops.l1}
LARGE = (64, 3, 16, 16)  # elements enough for the kernels to be taken when nothing is forced


@pytest.fixture(autouse=True)
def _numbers():
    torch.manual_seed(0)


@pytest.fixture
def backend(request):
    """A backend that this process can run on CPU tensors, forced."""
    status = {s.name: s for s in backends.status()}[request.param]
    if not status.available or (request.param == "triton" and torch.cuda.is_available()):
        pytest.skip(f"{request.param}: {status.reason}")
    with genmod.backend(request.param):
        yield request.param


every_backend = pytest.mark.parametrize("backend", BACKENDS, indirect=True)


# Known answers.


@every_backend
def test_pytorch_s_own_losses(backend):
    x, t = torch.randn(5, 7), torch.rand(5, 7)
    torch.testing.assert_close(ops.mse(x, t, reduction="mean"), F.mse_loss(x, t))
    torch.testing.assert_close(ops.l1(x, t, reduction="mean"), F.l1_loss(x, t))
    bce = F.binary_cross_entropy_with_logits(x, t, reduction="sum")
    torch.testing.assert_close(ops.bernoulli_nll(x, t), bce / 5)
    logvar = 0.5 * torch.randn(5, 7)
    ours = ops.gaussian_nll(x, t, logvar=logvar, reduction="mean")
    torch.testing.assert_close(ours, F.gaussian_nll_loss(x, t, logvar.exp(), full=True))
    for scale in (0.1, 2.0):
        normal = -torch.distributions.Normal(x, scale).log_prob(t)
        torch.testing.assert_close(ops.gaussian_nll(x, t, sigma=scale, reduction="none"), normal)
        laplace = -torch.distributions.Laplace(x, scale).log_prob(t)
        torch.testing.assert_close(ops.laplace_nll(x, t, scale=scale, reduction="none"), laplace)


@every_backend
@pytest.mark.parametrize("bins", [2, 5, 256])
@pytest.mark.parametrize("log_scale", [-6.0, -2.0, 1.0])
def test_the_bins_probabilities_sum_to_one(backend, bins, log_scale):
    means = torch.tensor([[-3.0], [-1.0], [0.1], [0.9]], dtype=torch.float64)
    values = torch.linspace(-1, 1, bins, dtype=torch.float64).expand(4, bins).contiguous()
    nll = ops.discretized_logistic_nll(
        means.expand(4, bins).contiguous(), values, scale=math.exp(log_scale), bins=bins, reduction="none"
    )
    torch.testing.assert_close((-nll).exp().sum(1), torch.ones(4, dtype=torch.float64))


# Extremes, against a hundred and fifty digits: that many remain of differences as small as these when they are formed.

mpmath.mp.dps = 150


def exact(kind, x, t, s):
    """The definition, without a thought about rounding."""
    x, t, s = (mpmath.mpf(v) for v in (x, t, s))
    if kind == "bernoulli":
        return mpmath.log(1 + mpmath.exp(x)) - x * t
    if kind == "gaussian":
        return (mpmath.log(2 * mpmath.pi) + s + (t - x) ** 2 / mpmath.exp(s)) / 2
    if kind == "laplace":
        return mpmath.log(2) + s + abs(t - x) / mpmath.exp(s)
    half = mpmath.mpf(1) / 255

    def tail(u):  # 1 - cdf = 1 / (1 + e^u), which the difference below loses no digits of
        return 1 / (1 + mpmath.exp(u))

    low, high = (t - x - half) / mpmath.exp(s), (t - x + half) / mpmath.exp(s)
    if t < half - 1:
        return -mpmath.log(1 - tail(high)) if high > 0 else -mpmath.log(tail(-high))
    if t > 1 - half:
        return -mpmath.log(tail(low))
    if low > 0:
        return -mpmath.log(tail(low) - tail(high))
    return -mpmath.log(tail(-high) - tail(-low))


EXTREMES = {
    "bernoulli": [
        (x, t, 0.0) for x in (0.0, 1e-6, -20.0, 20.0, -88.5, 95.0, -1e4, 1e4, 1e30) for t in (0.0, 1.0, 0.25)
    ],
    "gaussian": [(x, 0.5, s) for x in (0.5, 0.4999, -3.0, 1e4) for s in (-30.0, -12.0, 0.0, 40.0, 1000.0)],
    "laplace": [(x, 0.5, s) for x in (0.5, 0.4999, -3.0, 1e4) for s in (-15.0, -5.0, 0.0, 40.0, 1000.0)],
    "discretized_logistic": [
        (x, t, s)
        for x in (0.0, 0.3, -0.99, 4.0, -50.0, 1e4)
        for t in (-1.0, 1.0, 1 / 255, 201 / 255)
        for s in (-7.0, -3.0, 0.0, 20.0, 60.0, 200.0)
    ],
}


@every_backend
@pytest.mark.parametrize("kind", EXTREMES)
def test_extremes_against_many_digits(backend, kind):
    points = torch.tensor(EXTREMES[kind])
    x, t, s = (points[:, i : i + 1].contiguous() for i in range(3))
    x.requires_grad_()
    if kind == "bernoulli":
        nll = ops.bernoulli_nll(x, t, reduction="none")
    else:
        s.requires_grad_()
        loss, name, bound = SCALED[kind]
        nll = loss(x, t, **{name: s, bound: None}, reduction="none")
    leaves = [x] if kind == "bernoulli" else [x, s]
    grads = torch.autograd.grad(nll.sum(), leaves)
    for i, point in enumerate(points.tolist()):
        # Good to a few roundings of the distance in units of the scale, which is what float32 can know.
        expected = exact(kind, *point)
        assert mpmath.isfinite(expected)
        assert float(abs(nll[i].item() - expected)) <= 2e-6 + 3e-6 * float(abs(expected)), (point, nll[i].item())
        for which, grad in zip((0, 2), grads, strict=False):
            if kind == "laplace" and point[0] == point[1]:
                continue  # a kink
            step = mpmath.mpf(10) ** -20 * max(1, abs(point[which]))
            ends = [[v + sign * step * (j == which) for j, v in enumerate(map(mpmath.mpf, point))] for sign in (1, -1)]
            slope = (exact(kind, *ends[0]) - exact(kind, *ends[1])) / (2 * step)
            got = grad[i].item()
            scale = float(abs(slope)) + math.exp(-max(point[2], -30) if which == 0 else 0)
            assert abs(got - float(slope)) <= 1e-5 * scale + 1e-6, (point, which, got, float(slope))


@every_backend
@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("scale", [-math.inf, -1e30, 1e30])
def test_a_variance_that_has_run_away(backend, kind, scale):
    """Finite, with the default bound; and below the bound there is no gradient."""
    loss, name, _ = SCALED[kind]
    x, s = torch.randn(4, 3, requires_grad=True), torch.full((4, 3), scale, requires_grad=True)
    value = loss(x, torch.zeros(4, 3), **{name: s})
    by_output, by_scale = torch.autograd.grad(value, (x, s))
    assert value.isfinite()
    assert by_output.isfinite().all()
    assert by_scale.isfinite().all()
    assert by_scale.any() == (scale > 0)


# Weights and masks.


def call_of(kind, x, t, **options):
    if kind in PLAIN:
        return PLAIN[kind](x, t, **options)
    return SCALED[kind][0](x, t, **{SCALED[kind][1]: torch.full_like(x, -1.0)}, **options)


@every_backend
@pytest.mark.parametrize("kind", [*PLAIN, *SCALED])
@pytest.mark.parametrize("as_weight", [False, True], ids=["mask", "weight"])
def test_what_is_masked_is_not_looked_at(backend, kind, as_weight):
    x, t = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    mask = torch.rand(2, 1, 4, 5) > 0.4
    hidden = ~mask.expand_as(x)
    option = {"weight": mask.float()} if as_weight else {"mask": mask}
    results = []
    for x_hidden, t_hidden in ((0.0, 0.0), (math.nan, math.inf)):
        leaf = x.masked_fill(hidden, x_hidden).requires_grad_()
        value = call_of(kind, leaf, t.masked_fill(hidden, t_hidden), **option)
        (grad,) = torch.autograd.grad(value, leaf)
        results += [(value.detach(), grad)]
        assert not grad[hidden].any()
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@every_backend
def test_mean_over_a_mask(backend):
    x, t, mask = torch.randn(3, 2, 4, 4), torch.rand(3, 2, 4, 4), torch.rand(3, 1, 4, 4) > 0.5
    kept = mask.expand_as(x)
    expected = F.mse_loss(x[kept], t[kept])
    for given in (mask, mask.float(), kept):
        torch.testing.assert_close(ops.mse(x, t, mask=given, reduction="mean"), expected)
    assert ops.mse(x, t, mask=torch.zeros_like(mask), reduction="mean") == 0
    assert ops.mse(x, t, mask=mask, reduction="sum") == ops.mse(x, t, weight=mask.float(), reduction="sum")


def test_gradients_of_what_is_usually_data():
    x, t, w = (torch.rand(3, 4, dtype=torch.double, requires_grad=True) for _ in range(3))
    for kind in [*PLAIN, *SCALED]:
        data = (x, t, w)
        if kind == "discretized_logistic":  # its target is discrete
            data = (x, t.detach(), w)
        torch.autograd.gradcheck(lambda x, t, w, k=kind: call_of(k, x, t, weight=w), data)
        torch.autograd.gradgradcheck(lambda x, t, w, k=kind: call_of(k, x, t, weight=w), data)
    assert genmod.explain(ops.mse, x, t).backend == "reference"
    assert "target" in str(genmod.explain(ops.mse, x, t))


# Forms of a scale, and dtypes that differ.


@every_backend
@pytest.mark.parametrize("kind", SCALED)
def test_every_form_of_a_scale_agrees(backend, kind):
    loss, name, _ = SCALED[kind]
    fixed = "sigma" if kind == "gaussian" else "scale"
    x, t = torch.randn(4, 3, 2, 2), torch.rand(4, 3, 2, 2)
    s = -0.8
    number = math.exp(s / 2 if kind == "gaussian" else s)
    full = torch.full_like(x, s)
    expected = loss(x, t, **{name: full})
    for options in ({name: torch.tensor(s)}, {name: torch.full((3, 1, 1), s)}, {fixed: number}):
        torch.testing.assert_close(loss(x, t, **options), expected)
    torch.testing.assert_close(loss(torch.cat((x, full), 1), t), expected)
    leaves = [torch.full(shape, s, requires_grad=True) for shape in ((), (1,), (3, 1, 1), (4, 3, 2, 2))]
    grads = [torch.autograd.grad(loss(x, t, **{name: leaf}), leaf)[0] for leaf in leaves]
    for leaf, grad in zip(leaves, grads, strict=True):
        assert grad.shape == leaf.shape
        torch.testing.assert_close(grad.sum(), grads[-1].sum(), rtol=1e-5, atol=1e-5)


@every_backend
def test_bfloat16_logits_meet_a_float32_image(backend):
    x, t = torch.randn(4, 6).bfloat16().requires_grad_(), torch.rand(4, 6)
    value = ops.bernoulli_nll(x, t)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, F.binary_cross_entropy_with_logits(x.float(), t, reduction="sum") / 4)
    assert torch.autograd.grad(value, x)[0].dtype == torch.bfloat16


@NATIVE
def test_sums_of_many_small_terms():
    x = torch.full((1, 3_000_001), 1e-3)
    value = ops.mse(x, torch.zeros_like(x), reduction="sum")
    torch.testing.assert_close(value.item(), 3_000_001 * float(x[0, 0]) ** 2, rtol=1e-6, atol=0)


# Loss and gradient in one pass.


def large(kind="bernoulli"):
    x, t = torch.randn(LARGE, requires_grad=True), torch.rand(LARGE)
    assert genmod.explain(PLAIN[kind], x, t).backend == ("cpp" if _native.loaded else "reference")
    return x, t


def test_the_kept_gradient_is_handed_over_once():
    x, t = large()
    value = ops.bernoulli_nll(x, t)
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    copy = first.clone()
    first.zero_()  # whoever gets it may write to it
    (second,) = torch.autograd.grad(value, x, retain_graph=True)
    torch.testing.assert_close(second, copy)
    (third,) = torch.autograd.grad(value, x)
    assert torch.equal(second, third)


@pytest.mark.parametrize("factor", [1.0, 0.25, -3.0, 0.0])
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
def test_the_kept_gradient_is_scaled(factor, reduction):
    x, t = large()
    (grad,) = torch.autograd.grad(factor * ops.bernoulli_nll(x, t, reduction=reduction), x)
    divisor = {"batchmean": x.shape[0], "mean": x.numel()}.get(reduction, 1)
    torch.testing.assert_close(grad, factor * (x.sigmoid() - t).detach() / divisor)


def test_an_output_used_twice():
    x, t = large()
    y = x * 1.0
    (grad,) = torch.autograd.grad(ops.bernoulli_nll(y, t) + ops.mse(y, t), x)
    torch.testing.assert_close(grad, (x.sigmoid() - t + 2 * (x - t)).detach() / len(x))


@pytest.mark.parametrize("kind", SCALED)
def test_second_derivatives_after_one_pass(kind):
    """A gradient penalty on the loss: the derivative of a gradient, which must not come from what was kept."""
    loss, name, _ = SCALED[kind]
    t = torch.rand(300, 130, dtype=torch.double)
    x = (t + 0.2 * torch.randn_like(t)).requires_grad_()
    s = torch.tensor(-1.0, dtype=torch.double, requires_grad=True)
    results = []
    for where in (contextlib.nullcontext(), genmod.backend("reference")):
        with where:
            grads = torch.autograd.grad(loss(x, t, **{name: s}), (x, s), create_graph=True)
            results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), (x, s)))
    torch.testing.assert_close(results[0], results[1])


# Second derivatives: an op of their own, which the battery's gradgradcheck sees in float64 only.


def leaves_of(kind, scale, dtype, shape=(3, 2, 5, 7)):
    """A loss of leaves that require gradients, by kind and by how its log-scale is given, and the leaves."""
    generator = torch.Generator().manual_seed(1)

    def normal(*sizes):
        return torch.randn(sizes, generator=generator, dtype=torch.double)

    # Twelve bins, so that some are the outermost; the outputs are not farther off than a few widths.
    t = torch.randint(12, shape, generator=generator) / 11
    t = (t if kind == "bernoulli" else 2 * t - 1).to(dtype)
    options = {"bins": 12} if kind == "discretized_logistic" else {}
    x, s = t.double() + 0.4 * normal(*shape), 0.4 * normal(*shape) - 1
    if kind in PLAIN:
        return lambda x, **o: PLAIN[kind](x, t.to(x.dtype), **o), [x.to(dtype)]
    loss, name, bound = SCALED[kind]
    options[bound] = -1.0  # which half of them are below
    if scale == "packed":
        return lambda x, **o: loss(x, t.to(x.dtype), **options, **o), [torch.cat((x, s), 1).to(dtype)]
    s = s if scale == "each" else s[0, 0, 0, s[0, 0, 0].argmax()]
    return lambda x, s, **o: loss(x, t.to(x.dtype), **{name: s}, **options, **o), [x.to(dtype), s.to(dtype)]


FORMS = [(kind, "") for kind in PLAIN] + [(kind, form) for kind in SCALED for form in ("packed", "each", "one")]


def second_derivatives(loss, leaves, dtype, **options):
    """Of all leaves, from a fixed vector that arrives at their gradients."""
    leaves = [leaf.to(dtype).requires_grad_() for leaf in leaves]
    generator = torch.Generator().manual_seed(2)
    grads = torch.autograd.grad(loss(*leaves, **options).sum(), leaves, create_graph=True)
    vectors = [torch.randn(leaf.shape, generator=generator, dtype=torch.double).to(leaves[0].dtype) for leaf in leaves]
    found = torch.autograd.grad(grads, leaves, [v.to(dtype) for v in vectors], allow_unused=True)
    return [torch.zeros_like(leaf) if f is None else f for f, leaf in zip(found, leaves, strict=True)]


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "scale"), FORMS)
def test_second_derivatives_are_as_exact_as_the_first(backend, kind, scale, dtype):
    loss, leaves = leaves_of(kind, scale, dtype)
    weight = torch.rand(3, 2, 5, 7)
    for options in ({}, {"reduction": "none"}, {"reduction": "batch", "weight": weight}):
        found = second_derivatives(loss, leaves, dtype, **options)
        with genmod.backend("reference"):
            exact = second_derivatives(loss, leaves, torch.double, **options)
        for ours, right in zip(found, exact, strict=True):
            size = right.abs().max().item()
            # A few roundings of what is summed; in half precision the last, of the result, is nearly all there is.
            roundings = 4 if dtype == torch.float32 else 1
            assert (ours.double() - right).abs().max().item() <= roundings * torch.finfo(dtype).eps * size


@every_backend
@pytest.mark.parametrize(("kind", "scale"), FORMS)
def test_third_derivatives(backend, kind, scale):
    """They, and whatever comes after them, go by autograd through the reference."""
    loss, leaves = leaves_of(kind, scale, torch.double, (2, 2, 1, 2))

    def penalty(*leaves):
        grads = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        return sum(g.square().sum() for g in grads)

    assert torch.autograd.gradgradcheck(penalty, [leaf.requires_grad_() for leaf in leaves])


@NATIVE
def test_second_derivatives_of_far_tails_are_finite():
    x, t = torch.tensor([[0.0, 4.0, -50.0, 1e4]]), torch.tensor([[0.5, -1.0, 1.0, 1 / 255]])
    for kind, (loss, name, bound) in SCALED.items():
        for s in (-15.0, -7.0, 0.0, 20.0, 60.0):
            leaves = [x, torch.full_like(x, s if kind != "gaussian" else 2 * s)]
            seconds = second_derivatives(
                lambda x, s, f=loss, n=name, b=bound: f(x, t, **{n: s, b: None}), leaves, torch.float32
            )
            assert all(second.isfinite().all() for second in seconds), (kind, s)


@pytest.mark.skipif(not _native.loaded, reason="the reference makes both of the same steps")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "laplace", "discretized_logistic", "mse", "l1"])
def test_one_pass_makes_the_bits_of_two(kind, dtype):
    generator = torch.Generator().manual_seed(0)
    shape, one = (3, 5, 17, 19), torch.ones((), dtype=dtype)  # whole vectors and what is left of them
    x, log_scale = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    target = torch.randint(256, shape, generator=generator) / 255
    target = target.to(dtype) if kind == "bernoulli" else 2 * target.to(dtype) - 1
    scaled = kind in ("gaussian", "laplace", "discretized_logistic")
    for scale in (None, log_scale, log_scale[0, 0, 0, 0]) if scaled else (None,):
        inputs = (x, target, scale, None, kind, False, -1.0, None, 256, "mean")
        wanted = 1 if scale is None else 3
        loss, *gradients = torch.ops.genmod.reconstruction_with_gradient(*inputs, wanted)
        alone = torch.ops.genmod.reconstruction_backward(one, *inputs, wanted)
        assert torch.equal(loss, torch.ops.genmod.reconstruction(*inputs))
        assert all(torch.equal(a, b) for a, b in zip(gradients, alone, strict=True))


def test_a_gradient_of_the_scale_alone():
    x, t = torch.randn(300, 130), torch.rand(300, 130)
    s = torch.tensor(-1.0, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.gaussian_nll(x, t, logvar=s), s)
    torch.testing.assert_close(grad, (0.5 - 0.5 * (t - x).square() * math.e).sum() / 300)


# Small calls.


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
def test_small_calls_take_pytorch_s_own(kind, reduction):
    x, t = torch.randn(4, 6, dtype=torch.double, requires_grad=True), torch.rand(4, 6, dtype=torch.double)
    loss = PLAIN[kind]
    explanation = genmod.explain(loss, x, t, reduction=reduction)
    assert explanation.backend == "reference"
    assert "32768 elements" in explanation.reason
    with genmod.backend("reference"):
        expected = loss(x, t, reduction=reduction)
    torch.testing.assert_close(loss(x, t, reduction=reduction), expected)
    torch.autograd.gradgradcheck(lambda x: loss(x, t, reduction=reduction), x)
    assert genmod.explain(loss, x.detach(), t).backend == ("cpp" if _native.loaded else "reference")


# Modes that go around autograd as usual.


def model(x, t, s):
    mask = torch.ones(x.shape[0], 1, dtype=torch.bool, device=x.device)
    return ops.gaussian_nll(x.tanh(), t, logvar=s) + ops.bernoulli_nll(x, t, mask=mask, reduction="mean")


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_torch_func_grad(compiled):
    x, t, s = torch.randn(5, 6), torch.rand(5, 6), torch.randn(5, 6)
    gradient = torch.func.grad(model, argnums=(0, 2))
    if compiled:
        torch._dynamo.reset()
        gradient = torch.compile(gradient, fullgraph=True)
    x_, s_ = x.clone().requires_grad_(), s.clone().requires_grad_()
    torch.testing.assert_close(gradient(x, t, s), torch.autograd.grad(model(x_, t, s_), (x_, s_)))


def test_torch_func_vmap_and_hessian():
    x, t, s = (torch.rand(3, 4, 5, dtype=torch.double) for _ in range(3))
    mapped = torch.func.vmap(model)(x, t, s)
    torch.testing.assert_close(mapped, torch.stack([model(*each) for each in zip(x, t, s, strict=True)]))
    hessian = torch.func.hessian(model)(x[0], t[0], s[0])
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(lambda x: model(x, t[0], s[0]), x[0]))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_without_graph_breaks(backend):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for shape in ((5, 6), (300, 130)):
        x, t, s = torch.randn(shape), torch.rand(shape), torch.tensor(-1.0)
        results = []
        for function in (model, compiled):
            leaves = [x.clone().requires_grad_(), s.clone().requires_grad_()]
            value = function(leaves[0], t, leaves[1])
            results.append((value, *torch.autograd.grad(value, leaves)))
        torch.testing.assert_close(results[0], results[1])


# Support.


def test_validation_of_targets():
    x = torch.zeros(2, 3, requires_grad=True)
    good, bad = torch.tensor([0.0, 1.0, 0.5]).expand(2, 3), torch.tensor([0.0, 1.0, -0.5]).expand(2, 3)
    assert ops.bernoulli_nll(x, good, validate=True).isfinite()
    assert ops.bernoulli_nll(x, bad).isfinite()
    for t in (bad, torch.full((2, 3), math.nan)):
        with pytest.raises(ValueError, match=r"target.*\[0, 1\]"):
            ops.bernoulli_nll(x, t, validate=True)
    mask = torch.tensor([True, True, False])
    assert ops.bernoulli_nll(x, bad, mask=mask, validate=True).isfinite()
    assert ops.discretized_logistic_nll(x, bad, scale=1.0, validate=True).isfinite()
    with pytest.raises(ValueError, match=r"target: got 2.*\[-1, 1\]"):
        ops.discretized_logistic_nll(x, 2 * good, scale=1.0, validate=True)


# The module.


@pytest.mark.parametrize("kind", [*PLAIN, *SCALED])
def test_reconstruction_loss(kind):
    options = {"gaussian": {"sigma": 0.3}, "laplace": {"scale": 0.3}, "discretized_logistic": {"scale": 0.3, "bins": 5}}
    given = options.get(kind, {})
    module = nn.ReconstructionLoss(kind, reduction="batch", **given)
    x, t, mask = torch.randn(3, 4), torch.rand(3, 4), torch.rand(3, 4) > 0.5
    loss = PLAIN[kind] if kind in PLAIN else SCALED[kind][0]
    torch.testing.assert_close(module(x, t, mask=mask), loss(x, t, mask=mask, reduction="batch", **given))
    assert repr(kind) in repr(module)
    assert "'batch'" in repr(module)
    assert all(f"{name}={value}" in repr(module) for name, value in given.items())


def test_reconstruction_loss_of_a_mixture():
    output, image = torch.randn(2, 20, 4, 4), torch.rand(2, 3, 4, 4) * 2 - 1
    module = nn.ReconstructionLoss("logistic_mixture", bins=32)
    torch.testing.assert_close(module(output, image), ops.logistic_mixture_nll(output, image, bins=32))


def test_reconstruction_loss_refuses():
    with pytest.raises(ValueError, match=r"kind.*'poisson'.*'bernoulli'"):
        nn.ReconstructionLoss("poisson")
    with pytest.raises(ValueError, match=r"reduction.*'total'"):
        nn.ReconstructionLoss("mse", reduction="total")
    with pytest.raises(TypeError, match=r"sigma.*'bernoulli'.*weight"):
        nn.ReconstructionLoss("bernoulli", sigma=1.0)


@every_backend
def test_a_gradient_that_nobody_wants_has_the_dtype_of_the_output(backend):
    output, scale = torch.randn(2, 3), torch.zeros((), dtype=torch.bfloat16)
    options = ("gaussian", False, 0.0, -30.0, 256, "sum")
    with genmod.backend(backend):
        found = torch.ops.genmod.reconstruction_backward(torch.ones(()), output, output, scale, None, *options, 1)
    assert [(g.dtype, tuple(g.shape)) for g in found] == [(torch.float32, (2, 3)), (torch.float32, (0,))]
