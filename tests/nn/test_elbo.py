"""ELBO, importance-weighted bounds and schedules."""

from __future__ import annotations

import math

import pytest
import torch

from genmod import nn, ops


def squared_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square().flatten(1).sum(1)


@pytest.fixture
def batch() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 3), 0.5 * torch.randn(4, 3)


# The ELBO.


@pytest.mark.parametrize(
    "options", [{}, {"beta": 4.0}, {"free_bits": 0.5}, {"capacity": 2.0, "beta": 10.0}], ids=lambda o: str(sorted(o))
)
def test_parts_sum_to_the_loss(batch, options):
    terms = nn.ELBO(squared_error, **options)(*batch)
    torch.testing.assert_close(terms.loss, terms.reconstruction + terms.penalty)
    each = ops.gaussian_kl(*batch[2:], reduction="none")
    torch.testing.assert_close(terms.kl, each.sum(1).mean())
    torch.testing.assert_close(terms.reconstruction, squared_error(*batch[:2]).mean())
    beta = options.get("beta", 1.0)
    if "free_bits" in options:
        penalty = each.mean(0).clamp(min=0.5).sum()
        assert (each.mean(0) < 0.5).any() and (each.mean(0) > 0.5).any()
    elif "capacity" in options:
        penalty = (each.sum(1).mean() - 2.0).abs()
    else:
        penalty = each.sum(1).mean()
    torch.testing.assert_close(terms.penalty, beta * penalty)
    assert terms.beta.item() == beta


def test_every_form_of_the_posterior(batch):
    output, target, mean, logvar = batch
    elbo = nn.ELBO(squared_error)
    expected = elbo(output, target, mean, logvar)
    packed = torch.cat((mean, logvar), 1)
    for found in (
        elbo(output, target, packed),
        elbo(output, target, nn.DiagonalGaussian(mean, logvar)),
        elbo(output, target, kl=ops.gaussian_kl(mean, logvar, reduction="batch")),
        elbo(output, target, kl=ops.gaussian_kl(mean, logvar)),
    ):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_free_bits_stop_the_gradient_of_a_dimension_below_them():
    mean = torch.tensor([[0.1, 3.0], [-0.1, 2.0]], requires_grad=True)
    zeros = torch.zeros(2, 2)
    nn.ELBO(squared_error, free_bits=0.25)(zeros, zeros, mean, zeros).loss.backward()
    assert not mean.grad[:, 0].any() and torch.equal(mean.grad[:, 1], mean.detach()[:, 1] / 2)


def test_annealing_and_its_checkpoint(batch):
    def make() -> nn.ELBO:
        return nn.ELBO(squared_error, beta=nn.LinearSchedule(0, 1, 4), capacity=nn.LinearSchedule(0, 25, 10))

    elbo = make()
    betas = []
    for _ in range(6):
        betas.append(elbo(*batch).beta.item())
        elbo.step()
    assert betas == [0, 0.25, 0.5, 0.75, 1, 1]
    resumed = make()
    resumed.load_state_dict(elbo.state_dict())
    assert resumed.steps.item() == 6
    for a, b in zip(resumed(*batch), elbo(*batch), strict=True):
        assert torch.equal(a, b)
    terms = elbo(*batch)
    torch.testing.assert_close(terms.penalty, (terms.kl - 15.0).abs())


def test_likelihood_module_is_part_of_the_elbo():
    likelihood = nn.LogisticMixture(1)
    elbo = nn.ELBO(likelihood)
    assert likelihood in elbo.modules()
    x = torch.randint(0, 256, (2, 3, 2, 2)) / 127.5 - 1
    terms = elbo(torch.zeros(2, 10, 2, 2), x, torch.zeros(2, 8))
    torch.testing.assert_close(terms.loss, ops.logistic_mixture_nll(torch.zeros(2, 10, 2, 2), x))
    assert terms.kl == 0


@pytest.mark.parametrize(
    ("options", "error", "mention"),
    [
        ({"likelihood": 3}, TypeError, "likelihood"),
        ({"beta": -1.0}, ValueError, "beta: got -1"),
        ({"free_bits": -1.0}, ValueError, "free_bits: got -1"),
        ({"capacity": -1.0}, ValueError, "capacity: got -1"),
        ({"capacity": 1.0, "free_bits": 1.0}, ValueError, "capacity: got one together with free_bits"),
    ],
)
def test_bad_options(options, error, mention):
    with pytest.raises(error, match=mention):
        nn.ELBO(**{"likelihood": squared_error, **options})


def test_bad_calls(batch):
    output, target, mean, logvar = batch
    with pytest.raises(ValueError, match="posterior"):
        nn.ELBO(squared_error)(output, target)
    with pytest.raises(ValueError, match="posterior"):
        nn.ELBO(squared_error)(output, target, mean, logvar, kl=mean.sum())
    with pytest.raises(ValueError, match="free_bits"):
        nn.ELBO(squared_error, free_bits=0.1)(output, target, kl=mean.sum())
    with pytest.raises(ValueError, match=r"likelihood: it returned shape \(\)"):
        nn.ELBO(lambda o, t: (o - t).square().sum())(*batch)


# Importance-weighted bounds, on x|z ~ N(a z, s^2), z ~ N(0, 1), so that x ~ N(0, a^2 + s^2) is known.

A, S = 1.5, 0.7


def linear_nll(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (0.5 * math.log(2 * math.pi * S**2) + 0.5 * ((target - output) / S).square()).flatten(1).sum(1)


def exact_nll(x: torch.Tensor) -> torch.Tensor:
    variance = A**2 + S**2
    return (0.5 * math.log(2 * math.pi * variance) + 0.5 * x.square() / variance).flatten(1).sum(1).mean()


def decode(z: torch.Tensor) -> torch.Tensor:
    return A * z


@pytest.mark.parametrize("gradient", ["standard", "dreg"])
def test_the_exact_posterior_gives_the_exact_likelihood(gradient):
    x = torch.randn(5, 3, dtype=torch.float64)
    precision = 1 + A**2 / S**2
    mean, logvar = A / S**2 / precision * x, torch.full_like(x, -math.log(precision))
    terms = nn.ImportanceWeightedELBO(linear_nll, 7, gradient=gradient)(decode, x, mean, logvar)
    torch.testing.assert_close(terms.loss, exact_nll(x))
    assert terms.log_weights.shape == (7, 5) and terms.log_weights.std(0).max() < 1e-9


def test_bounds_tighten_with_more_samples():
    torch.manual_seed(0)
    x = torch.randn(1, 1).expand(20_000, 1)
    mean, logvar = torch.full_like(x, 0.2), torch.full_like(x, -1.0)
    bounds = [nn.ImportanceWeightedELBO(linear_nll, k)(decode, x, mean, logvar).loss.item() for k in (1, 2, 8, 64)]
    exact = exact_nll(x[:1]).item()
    gaps = [bound - exact for bound in bounds]
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] > -5e-3
    elbo = linear_nll(decode(mean), x).mean() + 0.5 * (A / S) ** 2 * math.exp(-1.0) + ops.gaussian_kl(mean, logvar)
    assert bounds[0] == pytest.approx(elbo.item(), rel=2e-2)


def test_one_sample_is_the_elbo_with_a_sampled_divergence(batch):
    _, target, mean, logvar = batch
    mean.requires_grad_()
    decoder = torch.nn.Linear(3, 6)
    noise = torch.randn(1, 4, 3)
    terms = nn.ImportanceWeightedELBO(squared_error, 1)(decoder, target, mean, logvar, noise=noise)
    z = ops.reparameterize(mean, logvar, noise=noise[0])
    prior = ops.gaussian_nll(torch.zeros_like(z), z, logvar=torch.zeros_like(z), reduction="batch")
    sampled = prior - ops.gaussian_nll(mean, z, logvar=logvar, min_logvar=None, reduction="batch")
    elbo = nn.ELBO(squared_error)(decoder(z), target, kl=sampled)
    torch.testing.assert_close(terms.loss, elbo.loss)
    torch.testing.assert_close(terms.kl, elbo.kl)
    for a, b in zip(
        torch.autograd.grad(terms.loss, (mean, *decoder.parameters())),
        torch.autograd.grad(elbo.loss, (mean, *decoder.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_targets_are_not_repeated(batch):
    _, target, mean, logvar = batch
    seen = []

    def likelihood(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append((output.shape, target.data_ptr()))
        return squared_error(output, target)

    nn.ImportanceWeightedELBO(likelihood, 5)(torch.nn.Linear(3, 6), target, mean, logvar)
    assert seen == [(target.shape, target.data_ptr())] * 5


def test_dreg_is_the_gradient_with_less_noise():
    torch.manual_seed(0)
    x = torch.full((4000, 1), 0.8)
    noise = torch.randn(16, 4000, 1)
    grads = {}
    for gradient in ("standard", "dreg"):
        mean, logvar = torch.full_like(x, 0.2).requires_grad_(), torch.full_like(x, -1.0)
        scale = torch.tensor(A, requires_grad=True)
        bound = nn.ImportanceWeightedELBO(linear_nll, 16, gradient=gradient)
        loss = bound(lambda z, scale=scale: scale * z, x, mean, logvar, noise=noise).loss
        by_mean, by_scale = torch.autograd.grad(loss, (mean, scale))
        grads[gradient] = (4000 * by_mean, by_scale)
    standard, dreg = grads["standard"], grads["dreg"]
    torch.testing.assert_close(standard[1], dreg[1])
    error = (standard[0].std() + dreg[0].std()) / math.sqrt(4000)
    assert abs(standard[0].mean() - dreg[0].mean()) < 4 * error
    assert dreg[0].std() < standard[0].std()


def test_bad_importance_weighting(batch):
    _, target, mean, logvar = batch
    with pytest.raises(ValueError, match="samples: got 0"):
        nn.ImportanceWeightedELBO(squared_error, 0)
    with pytest.raises(ValueError, match="gradient: got 'score'"):
        nn.ImportanceWeightedELBO(squared_error, 2, gradient="score")
    with pytest.raises(TypeError, match="likelihood"):
        nn.ImportanceWeightedELBO(None, 2)
    bound = nn.ImportanceWeightedELBO(squared_error, 2)
    with pytest.raises(ValueError, match=r"noise: got shape \(2, 4, 2\)"):
        bound(torch.nn.Linear(3, 6), target, mean, logvar, noise=torch.zeros(2, 4, 2))


# Schedules.


def values(schedule, steps) -> list[float]:
    by_int = [schedule(step).item() for step in steps]
    assert by_int == schedule(torch.tensor(list(steps))).tolist()
    return by_int


def test_linear_schedule():
    schedule = nn.LinearSchedule(1, 3, 4, delay=2)
    assert values(schedule, range(9)) == [1, 1, 1, 1.5, 2, 2.5, 3, 3, 3]


def test_cosine_schedule():
    schedule = nn.CosineSchedule(0, 1, 4)
    expected = [0, (1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2, 1, 1]
    assert values(schedule, range(6)) == pytest.approx(expected, abs=1e-7)
    assert schedule(0) == 0 and schedule(4) == 1


def test_cyclical_schedule():
    schedule = nn.CyclicalSchedule(0, 2, 8, rise=0.5)
    cycle = [0, 0.5, 1, 1.5, 2, 2, 2, 2]
    assert values(schedule, range(20)) == [*cycle, *cycle, *cycle[:4]]
    assert values(nn.CyclicalSchedule(0, 2, 8, cycles=1), range(6, 12)) == [2] * 6


def test_schedules_end_where_they_say():
    for end in (0.1, 1 / 3, 25.0):
        for schedule in (nn.LinearSchedule(0.7, end, 7), nn.CosineSchedule(0.7, end, 7)):
            assert schedule(7) == schedule(10**9) == torch.tensor(end)
    assert "LinearSchedule(0, 1, 5, delay=0)" in repr(nn.ELBO(squared_error, beta=nn.LinearSchedule(0, 1, 5)))


@pytest.mark.parametrize(
    ("make", "mention"),
    [
        (lambda: nn.LinearSchedule(0, 1, 0), "steps: got 0"),
        (lambda: nn.LinearSchedule(0, math.inf, 5), "end: got inf"),
        (lambda: nn.CosineSchedule(0, 1, 5, delay=-1), "delay: got -1"),
        (lambda: nn.CyclicalSchedule(0, 1, 5, rise=0.0), "rise: got 0.0"),
        (lambda: nn.CyclicalSchedule(0, 1, 5, cycles=0), "cycles: got 0"),
    ],
)
def test_bad_schedules(make, mention):
    with pytest.raises(ValueError, match=mention):
        make()
