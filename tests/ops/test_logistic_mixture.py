"""The logistic mixture: what the battery cannot know."""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F

import genmod
from genmod import _native, nn, ops

NATIVE = pytest.mark.skipif(not _native.loaded, reason=f"no C++ kernels: {_native.reason}")
BACKENDS = ["reference", pytest.param("cpp", marks=NATIVE)]
H = 1 / 255


@pytest.fixture(params=BACKENDS)
def backend(request):
    with genmod.backend(request.param):
        yield request.param


def images(*shape: int, bins: int = 256) -> torch.Tensor:
    return torch.randint(0, bins, shape) * (2 / (bins - 1)) - 1


# Values.


def exact_nll(parameters: list, pixel: list[float], bins: int = 256, min_log_scale: float = -7.0) -> mpmath.mpf:
    """One pixel to 60 digits and any exponent: probabilities as differences over a common denominator, channels and
    components in loops, and PixelCNN++'s order of the parameters spelled out."""
    channels = len(pixel)
    kinds = 3 if channels == 3 else 2
    count = len(parameters) // (1 + channels * kinds)
    h = mpmath.mpf(1) / (bins - 1)

    def parameter(kind: int, channel: int, k: int):
        return parameters[count + channel * kinds * count + kind * count + k]

    total = mpmath.mpf(0)
    for k in range(count):
        p = mpmath.exp(parameters[k])
        for channel, x in enumerate(pixel):
            mean = parameter(0, channel, k)
            if channel == 1:
                mean += mpmath.tanh(parameter(2, 0, k)) * pixel[0]
            if channel == 2:
                mean += mpmath.tanh(parameter(2, 1, k)) * pixel[0] + mpmath.tanh(parameter(2, 2, k)) * pixel[1]
            scale = mpmath.exp(max(parameter(1, channel, k), mpmath.mpf(min_log_scale)))
            a, b = mpmath.exp(-(x - mean + h) / scale), mpmath.exp(-(x - mean - h) / scale)
            if x > 1 - h:
                p *= b / (1 + b)  # 1 - sigmoid
            elif x < -1 + h:
                p *= 1 / (1 + a)
            else:
                p *= (b - a) / ((1 + a) * (1 + b))
        total += p
    return mpmath.log(sum(mpmath.exp(parameters[k]) for k in range(count))) - mpmath.log(total)


PIXELS = {"inside": [0.2, -0.4, 0.6], "black": [-1.0, -1.0, -1.0], "white": [1.0, 1.0, 1.0], "both": [-1.0, 0.0, 1.0]}
PARAMETERS = {
    "usual": (1.0, 0.5, -2.0),
    "saturated": (40.0, 30.0, -6.5),
    "scales at the bound": (1.0, 0.5, -9.0),
    "wide scales": (1.0, 0.5, 6.0),
}


@pytest.mark.parametrize("pixel", PIXELS.values(), ids=PIXELS)
@pytest.mark.parametrize("kind", PARAMETERS.values(), ids=PARAMETERS)
def test_values_and_gradients_to_sixty_digits(backend, kind, pixel):
    logits, means, log_scale = kind
    generator = torch.Generator().manual_seed(1)
    parameters = torch.randn(20, generator=generator, dtype=torch.float64)
    parameters[:2] *= logits
    blocks = parameters[2:].view(3, 3, 2)
    blocks[:, 0] *= means
    blocks[:, 1] = log_scale + 0.3 * blocks[:, 1]
    pixel = [round((v + 1) * 127.5) / 127.5 - 1 for v in pixel]
    output = parameters.view(1, 20, 1, 1).requires_grad_()
    target = torch.tensor(pixel, dtype=torch.float64).view(1, 3, 1, 1)
    nll = ops.logistic_mixture_nll(output, target)
    (grad,) = torch.autograd.grad(nll, output)
    with mpmath.workdps(60):
        exact = [mpmath.mpf(v) for v in parameters.tolist()]
        where = [mpmath.mpf(v) for v in target.flatten().tolist()]
        assert nll.item() == pytest.approx(float(exact_nll(exact, where)), rel=1e-12)
        for i in range(20):

            def along(v, i=i):
                return exact_nll([*exact[:i], v, *exact[i + 1 :]], where)

            slope = float(mpmath.diff(along, exact[i], h=mpmath.mpf(10) ** -20))
            assert grad.flatten()[i].item() == pytest.approx(slope, rel=1e-9, abs=1e-12), i
        single = ops.logistic_mixture_nll(output.float(), target)
        assert single.item() == pytest.approx(nll.item(), rel=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_of_all_values_sum_to_one(backend, dtype):
    grey = torch.tensor([0.3, -1.0, 0.2, 0.9, -3.0, -1.0], dtype=dtype).view(1, 6, 1, 1).expand(256, -1, -1, -1)
    values = torch.linspace(-1, 1, 256, dtype=dtype).view(256, 1, 1, 1)
    total = ops.logistic_mixture_nll(grey, values, reduction="batch").neg().exp().sum()
    assert total.item() == pytest.approx(1, abs=64 * torch.finfo(dtype).eps)
    colour = torch.randn(1, 20, 1, 1, generator=torch.Generator().manual_seed(0)).to(dtype).expand(64, -1, -1, -1)
    values = torch.tensor(list(itertools.product([-1, -1 / 3, 1 / 3, 1], repeat=3)), dtype=dtype).view(64, 3, 1, 1)
    total = ops.logistic_mixture_nll(colour, values, reduction="batch", bins=4).neg().exp().sum()
    assert total.item() == pytest.approx(1, abs=64 * torch.finfo(dtype).eps)


def test_agrees_with_the_original_code_where_that_is_exact(backend):
    torch.manual_seed(0)
    output, x = torch.randn(2, 50, 4, 4), images(2, 3, 4, 4)
    count = 5
    means, scales, coefficients = output[:, count:].reshape(2, 3, 3, count, 4, 4).unbind(2)
    c, pixel = coefficients.tanh(), x.unsqueeze(2)
    green = means[:, 1] + c[:, 0] * pixel[:, 0]
    blue = means[:, 2] + c[:, 1] * pixel[:, 0] + c[:, 2] * pixel[:, 1]
    centred = pixel - torch.stack((means[:, 0], green, blue), 1)
    scales = scales.clamp(min=-7)
    plus, minus = ((centred + s) * (-scales).exp() for s in (H, -H))
    delta = plus.sigmoid() - minus.sigmoid()
    middle = centred * (-scales).exp()
    density = middle - scales - 2 * F.softplus(middle) - math.log(127.5)
    inner = torch.where(delta > 1e-5, delta.clamp(min=1e-12).log(), density)
    outer = torch.where(pixel > 0.999, -F.softplus(minus), inner)
    log_p = torch.where(pixel < -0.999, plus - F.softplus(plus), outer)
    expected = -(log_p.sum(1) + output[:, :count].log_softmax(1)).logsumexp(1)
    nll = ops.logistic_mixture_nll(output, x, reduction="none")
    torch.testing.assert_close(nll, expected, rtol=1e-4, atol=1e-4)


# Extremes.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extremes_are_finite(backend, dtype):
    x = torch.tensor([-1.0, -0.5, 0.0, 1.0]).mul(127.5).round().div(127.5).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    for logit, mean, log_scale, coefficient in itertools.product((-1e4, 1e4), (-1e4, 0, 1e4), (-1e4, 0, 1e4), (0, 1e4)):
        output = torch.zeros(4, 20, 1, 1)
        output[:, 0] = logit
        blocks = output[:, 2:].view(4, 3, 3, 2)
        blocks[:, :, 0], blocks[:, :, 1], blocks[:, :, 2] = mean, log_scale, coefficient
        output = output.to(dtype).requires_grad_()
        nll = ops.logistic_mixture_nll(output, x, reduction="none")
        (grad,) = torch.autograd.grad(nll.sum(), output)
        case = (logit, mean, log_scale, coefficient)
        # Beyond float16's range is not the loss's fault.
        assert nll.isfinite().all() and (dtype == torch.float16 or grad.isfinite().all()), case
        assert not grad.isnan().any(), case


def test_a_mean_far_off_still_has_a_gradient(backend):
    """Where sigmoid differences round to zero, a floor under the probability would end the gradient."""
    output = torch.zeros(1, 3, 1, 1)
    output[:, 1], output[:, 2] = 50.0, -7.0
    output.requires_grad_()
    ops.logistic_mixture_nll(output, torch.zeros(1, 1, 1, 1) + H).backward()
    assert output.grad[0, 1].item() == pytest.approx(math.exp(7.0), rel=1e-5)


def test_a_component_ruled_out_does_not_count(backend):
    torch.manual_seed(0)
    output, x = torch.randn(2, 9, 3, 3), images(2, 1, 3, 3)
    alone = output[:, [0, 1, 3, 4, 6, 7]]
    output[:, 2] = float("-inf")
    output.requires_grad_()
    nll = ops.logistic_mixture_nll(output, x)
    torch.testing.assert_close(nll, ops.logistic_mixture_nll(alone, x))
    (grad,) = torch.autograd.grad(nll, output)
    assert not grad[:, [2, 5, 8]].any() and grad.isfinite().all()


# Weights, masks and targets.


def test_weight_has_a_gradient(backend):
    torch.manual_seed(0)
    output = torch.randn(2, 10, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, 1, 2, dtype=torch.float64, requires_grad=True)
    x = images(2, 3, 2, 2).double()
    for reduction in ("none", "per_dim", "batch", "batchmean", "mean", "sum"):

        def loss(output, weight, reduction=reduction):
            return ops.logistic_mixture_nll(output, x, weight=weight, reduction=reduction)

        torch.testing.assert_close(loss(output, weight), loss(output, weight.detach()))
        torch.autograd.gradcheck(loss, (output, weight), fast_mode=True)


def test_what_stands_under_the_mask_does_not_matter(backend):
    torch.manual_seed(0)
    output, x = torch.randn(2, 20, 3, 3), images(2, 3, 3, 3)
    mask = torch.rand(2, 3, 3) < 0.5
    expected = ops.logistic_mixture_nll(output, x, mask=mask)
    spoiled = torch.where(mask.unsqueeze(1), output, float("nan")).requires_grad_()
    nll = ops.logistic_mixture_nll(spoiled, torch.where(mask.unsqueeze(1), x, 7.0), mask=mask, validate=True)
    assert torch.equal(nll, expected)
    (grad,) = torch.autograd.grad(nll, spoiled)
    assert grad.isfinite().all() and not grad.movedim(1, -1)[~mask].any()


def test_targets_may_be_of_another_dtype(backend):
    torch.manual_seed(0)
    output, x = torch.randn(2, 20, 3, 3).bfloat16(), images(2, 3, 3, 3)
    expected = ops.logistic_mixture_nll(output.float(), x)
    for dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(ops.logistic_mixture_nll(output, x.to(dtype), validate=True), expected)
    ops.logistic_mixture_nll(output, x.bfloat16(), validate=True)


def test_no_gradient_flows_to_the_target():
    output, x = torch.randn(2, 20, 3, 3, requires_grad=True), images(2, 3, 3, 3).requires_grad_()
    ops.logistic_mixture_nll(output, x).backward()
    assert x.grad is None and output.grad is not None


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_of_the_same_pass_is_the_one_that_is_recomputed(weighted):
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(2, 30, 9, 11, generator=generator).requires_grad_()
    target = torch.randint(256, (2, 3, 9, 11), generator=generator) / 127.5 - 1
    weight = torch.rand(2, 9, 11, generator=generator) if weighted else None
    loss = ops.logistic_mixture_nll(output, target, weight=weight)
    (kept,) = torch.autograd.grad(loss, output, torch.tensor(3.0), retain_graph=True)
    (again,) = torch.autograd.grad(loss, output, torch.tensor(3.0), create_graph=True)
    torch.testing.assert_close(kept, again, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        assert torch.equal(loss.detach(), ops.logistic_mixture_nll(output, target, weight=weight))
    (second,) = torch.autograd.grad(again.square().sum(), output)
    assert second.isfinite().all() and second.any()


def test_under_torch_func_and_compile():
    torch.manual_seed(0)
    output, x = torch.randn(2, 20, 3, 3, requires_grad=True), images(2, 3, 3, 3)
    (expected,) = torch.autograd.grad(ops.logistic_mixture_nll(output, x), output)
    found = torch.func.grad(lambda o: ops.logistic_mixture_nll(o, x))(output.detach())
    torch.testing.assert_close(found, expected)
    compiled = torch.compile(lambda o: ops.logistic_mixture_nll(o, x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(output), output)[0], expected)


# The sampler.


def test_samples_follow_the_likelihood():
    torch.manual_seed(0)
    bins, size = 3, 300
    output = torch.randn(1, 20, 1, 1)
    output[:, 2:].view(3, 3, 2)[:, 1] -= 0.5
    drawn = ops.logistic_mixture_sample(output.expand(1, 20, size, size), bins=bins).flatten(2)[0]
    codes = ((drawn + 1).round() * torch.tensor([[9], [3], [1]])).sum(0).long()
    values = torch.tensor(list(itertools.product([-1.0, 0.0, 1.0], repeat=3))).view(27, 3, 1, 1)
    nll = ops.logistic_mixture_nll(output.expand(27, -1, -1, -1), values, bins=bins, reduction="batch")
    expected = nll.neg().exp() * size**2
    chi_square = ((torch.bincount(codes, minlength=27) - expected).square() / expected).sum()
    assert chi_square < 26 + 5 * math.sqrt(2 * 26)  # five standard deviations; the seed is fixed


def test_samples_repeat_with_torch_s_generator():
    output = torch.randn(2, 20, 5, 6)
    torch.manual_seed(3)
    first, second = ops.logistic_mixture_sample(output), ops.logistic_mixture_sample(output)
    torch.manual_seed(3)
    assert torch.equal(first, ops.logistic_mixture_sample(output))
    assert not torch.equal(first, second)
    own = [ops.logistic_mixture_sample(output, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*own)


def test_samples_lie_on_bins_and_keep_dtype_and_format():
    output = torch.randn(2, 20, 5, 6, requires_grad=True).contiguous(memory_format=torch.channels_last)
    drawn = ops.logistic_mixture_sample(output, bins=32)
    assert drawn.is_contiguous(memory_format=torch.channels_last) and not drawn.requires_grad
    ops.logistic_mixture_nll(output, drawn, bins=32, validate=True)
    assert ops.logistic_mixture_sample(output[:, :18].bfloat16(), channels=1).dtype == torch.bfloat16
    free = ops.logistic_mixture_sample(output, bins=None)
    assert free.abs().max() <= 1 and not torch.equal(free, (free * 127.5).round() / 127.5)


def test_cold_samples_sit_at_the_mean_of_the_likeliest_component():
    output = torch.zeros(1, 6, 1, 1)
    output[:, 1], output[:, 3] = 1.0, 0.25  # the second component is the likelier one, with its mean at 1/4
    drawn = ops.logistic_mixture_sample(output.expand(1, 6, 20, 20), channels=1, bins=None, temperature=1e-3)
    assert ((drawn - 0.25).abs() < 0.02).all()


def test_noise_given():
    output, noise = torch.zeros(1, 3, 1, 1), torch.full((1, 2, 1, 1), 0.5)
    output[:, 1], output[:, 2] = 0.1, -1.0
    drawn = ops.logistic_mixture_sample(output, noise=noise, channels=1, bins=None)
    assert drawn.item() == pytest.approx(0.1)  # the median
    noise[:, 1] = 0.6
    drawn = ops.logistic_mixture_sample(output, noise=noise, channels=1, bins=None)
    assert drawn.item() == pytest.approx(0.1 + math.exp(-1) * math.log(0.6 / 0.4))


@pytest.mark.parametrize(
    ("options", "error", "mention"),
    [
        ({"channels": 2}, ValueError, "channels: got 2"),
        ({"temperature": 0.0}, ValueError, "temperature: got 0"),
        ({"temperature": -1.0}, ValueError, "temperature: got -1"),
        ({"channels": 1}, ValueError, "output: got shape"),
        ({"noise": torch.zeros(1, 5, 2, 2)}, ValueError, "noise: got shape"),
        ({"noise": torch.zeros(1, 5, 2, 3), "generator": torch.Generator()}, ValueError, "generator"),
        ({"bins": 1}, ValueError, "bins: got 1"),
    ],
)
def test_bad_calls_of_the_sampler(options, error, mention):
    with pytest.raises(error, match=mention):
        ops.logistic_mixture_sample(torch.zeros(1, 20, 2, 3), **options)


# The module.


def test_module():
    torch.manual_seed(0)
    likelihood = nn.LogisticMixture(5, bins=32)
    assert likelihood.parameters_per_pixel == 50
    output, x = torch.randn(2, 50, 3, 3), images(2, 3, 3, 3, bins=32)
    assert torch.equal(likelihood(output, x), ops.logistic_mixture_nll(output, x, bins=32, reduction="batch"))
    drawn = likelihood.sample(output, generator=torch.Generator().manual_seed(0))
    ops.logistic_mixture_nll(output, drawn, bins=32, validate=True)
    assert "components=5" in repr(likelihood)
    with pytest.raises(ValueError, match="got 40 channels, expected 50"):
        likelihood(output[:, :40], x)
    for options in ({"components": 0}, {"channels": 2}, {"reduction": "total"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            nn.LogisticMixture(**options)
