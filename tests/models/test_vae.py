"""The VAE: every objective and likelihood against the formula written with torch.distributions, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Normal, kl_divergence

from genmod.models import VAE, VAEConfig
from genmod.models.likelihoods import KINDS, PixelLikelihood
from genmod.models.vae import OBJECTIVES

from .small import SMALL, check_draws, check_phases, images, train

STEP = 120  # of 500 for what is annealed


def make(**options: Any) -> VAE:
    torch.manual_seed(0)
    return VAE(VAEConfig(**{**SMALL, "dataset_size": 50, **options}))


class Terms:
    """The pieces of a VAE's losses for a batch, the way textbooks write them."""

    def __init__(self, model: VAE, x: Tensor, noise: Tensor) -> None:
        self.mean, self.logvar = model.parameters_of(x).chunk(2, 1)
        self.q = Normal(self.mean, (self.logvar / 2).exp())
        self.p = Normal(torch.zeros_like(self.mean), 1)
        self.z = self.mean + (self.logvar / 2).exp() * noise
        self.kl = kl_divergence(self.q, self.p).sum(1).mean()
        # Grey targets are no outcome of a Bernoulli trial, but its cross-entropy takes them.
        self.nll = -Bernoulli(logits=model.decoder(self.z), validate_args=False).log_prob(x).sum((1, 2, 3)).mean()

    def total_correlation(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mutual information, total correlation and dimension-wise divergence, by minibatch stratified sampling."""
        n = len(self.z)
        log_q = Normal(self.mean[None], (self.logvar[None] / 2).exp()).log_prob(
            self.z[:, None]
        )  # [sample, component, D]
        rest = (size - n + 1) / (size * (n - 1))
        weights = torch.full((n, n), 1 / (n - 1), dtype=log_q.dtype)
        for i in range(n):
            weights[i, i] = 1 / size
            weights[i, (i + 1) % n] = rest
        log_weights = weights.log()
        joint = (log_q.sum(2) + log_weights).logsumexp(1)
        marginals = (log_q + log_weights[:, :, None]).logsumexp(1).sum(1)
        given = self.q.log_prob(self.z).sum(1)
        return (given - joint).mean(), (joint - marginals).mean(), (marginals - self.p.log_prob(self.z).sum(1)).mean()

    def dip(self, second: bool, off_diagonal: float, diagonal: float) -> Tensor:
        covariance = self.mean.T.cov(correction=0) + (torch.diag(self.logvar.exp().mean(0)) if second else 0)
        on = covariance.diagonal()
        return off_diagonal * (covariance.square().sum() - on.square().sum()) + diagonal * (on - 1).square().sum()


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Inverse multiquadratic, unbiased, summed over the seven scales of the Wasserstein autoencoder."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        square = (a[:, None] - b[None]).square().sum(2)
        widths = [2 * x.shape[1] * s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)]
        return sum(c / (c + square) for c in widths)

    n = len(x)
    off = 1 - torch.eye(n, dtype=x.dtype)
    same = ((kernel(x, x) + kernel(y, y)) * off).sum() / (n * (n - 1))
    return same - 2 * kernel(x, y).mean()


def expected_terms(model: VAE, t: Terms, draws: dict[str, Tensor]) -> dict[str, Tensor]:
    c = model.config
    rising = min(STEP / c.warmup, 1.0)
    if c.objective == "beta_tc":
        information, correlation, dimension_kl = t.total_correlation(50)
        terms = {"mutual_information": information, "total_correlation": c.beta * correlation}
        return {**terms, "dimension_kl": dimension_kl}
    if c.objective == "wae":
        return {"kl": (1 - c.alpha) * t.kl, "mmd": (c.alpha + c.mmd_weight - 1) * mmd(t.z, draws["prior"])}
    return {
        "vae": lambda: {"kl": c.beta * t.kl},
        "annealed": lambda: {"kl": rising * c.beta * t.kl},
        "capacity": lambda: {"capacity": c.gamma * (t.kl - rising * c.capacity).abs()},
        "dip_i": lambda: {"kl": t.kl, "dip": t.dip(False, 10.0, 100.0)},
        "dip_ii": lambda: {"kl": t.kl, "dip": t.dip(True, 10.0, 10.0)},
    }[c.objective]()


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if o != "iwae"])
def test_loss_is_its_formula(objective: str) -> None:
    model, x = make(objective=objective, beta=3.0, alpha=0.6).double(), images().double()
    draws = {name: t.double() for name, t in model.draw("model", 6, torch.Generator().manual_seed(0)).items()}
    found = model.loss(x, draws=draws, step=STEP)
    terms = Terms(model, x, draws["noise"])
    expected = {"reconstruction": terms.nll, **expected_terms(model, terms, draws)}
    assert found.parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found.parts[name], value.detach(), rtol=1e-7, atol=1e-9, msg=name)
    torch.testing.assert_close(found.loss, sum(expected.values()))
    found_grads = torch.autograd.grad(found.loss, list(model.parameters()))
    for mine, theirs in zip(found_grads, torch.autograd.grad(sum(expected.values()), list(model.parameters()))):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("samples", [1, 4])
def test_importance_weighted_bound(samples: int) -> None:
    model, x = make(objective="iwae", samples=samples, gradient="standard").double(), images().double()
    noise = model.draw("model", 6, torch.Generator().manual_seed(0))["noise"].double()
    weights = []
    for k in range(samples):
        t = Terms(model, x, noise[:, k])
        likelihood = Bernoulli(logits=model.decoder(t.z), validate_args=False).log_prob(x).sum((1, 2, 3))
        weights.append(likelihood + t.p.log_prob(t.z).sum(1) - t.q.log_prob(t.z).sum(1))
    bound = -(torch.stack(weights).logsumexp(0) - math.log(samples)).mean()
    found = model.loss(x, draws={"noise": noise})
    torch.testing.assert_close(found.loss, bound)
    assert found.parts.keys() == {"bound"}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_phases_and_draws(objective: str) -> None:
    model = make(objective=objective)
    check_draws(model)
    check_phases(model, images())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_overfits_a_batch(objective: str) -> None:
    """The reconstruction, which every objective has, gets as good as the latents allow."""
    options = {"capacity": 12.0, "warmup": 40, "lambda_od": 1.0, "mmd_weight": 10.0, "samples": 2}
    model = make(objective=objective, width=16, latent_dim=8, likelihood="gaussian", sigma=0.05, **options)
    x = images(8)
    before = (model.reconstruct(x) - x).square().mean()
    first, last = train(model, x, 100)
    assert last < 0.5 * first
    assert (model.reconstruct(x) - x).square().mean() < 0.2 * before


# -------------------------------------------------------------------------------------------------------- likelihoods


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_likelihood(kind: str, channels: int) -> None:
    """Finite, of the right shape, its mean an image; and a decoder that follows it gets better."""
    torch.manual_seed(0)
    likelihood, x = PixelLikelihood(kind, channels, bins=16), images(3, channels)
    output = torch.nn.Parameter(torch.randn(3, likelihood.output_channels, 8, 8))
    assert likelihood(output, x).shape == (3,)
    assert likelihood.mean(output).shape == x.shape
    optimizer = torch.optim.Adam([output], 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        likelihood(output, x).mean().backward()
        optimizer.step()
    mean = likelihood.mean(output)
    assert mean.min() >= 0 and mean.max() <= 1
    assert (mean - x).abs().max() < 0.1


def test_bernoulli_trials_are_a_binomial() -> None:
    output, x = torch.randn(4, 1, 8, 8).double(), images(4).round().double()
    expected = -Binomial(3, logits=output).log_prob(3 * x).sum((1, 2, 3))
    torch.testing.assert_close(PixelLikelihood("bernoulli", 1, trials=3)(output, x), expected)


def test_gaussian_likelihood() -> None:
    output, x = torch.randn(4, 1, 8, 8).double(), images(4).double()
    expected = -Normal(output, 0.2).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(PixelLikelihood("gaussian", 1, sigma=0.2)(output, x), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_of_the_mixture_is_that_of_its_samples(channels: int) -> None:
    torch.manual_seed(0)
    likelihood = PixelLikelihood("logistic_mixture", channels, components=3)
    output = 0.3 * torch.randn(1, likelihood.output_channels, 2, 2)
    # Narrow, so that no sample leaves [-1, 1] and is moved back.
    output[:, 3:].unflatten(1, (channels, -1, 3))[:, :, 1] = -4.0
    drawn = likelihood.loss.sample(output.expand(20_000, -1, -1, -1), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(likelihood.mean(output)[0], (drawn.mean(0) + 1) / 2, rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_every_likelihood_trains(kind: str) -> None:
    model, x = make(likelihood=kind, bins=16, width=8), images(8)
    before = (model.reconstruct(x) - x).square().mean()
    first, last = train(model, x, 60)
    assert last < first - 3
    assert (model.reconstruct(x) - x).square().mean() < 0.5 * before
    assert model.sample(2).shape == (2, 1, 8, 8)


# ------------------------------------------------------------------------------------------------------------- images


def test_images_in_and_out() -> None:
    model, x = make(), images()
    posterior = model.encode(x).latent_dist
    assert torch.equal(posterior.mode(), model.latents(x))
    assert posterior.sample().shape == posterior.std.shape == (6, 3)
    torch.testing.assert_close(posterior.kl().mean(), model.elbo(x).parts["kl"])
    for made in (model.reconstruct(x), model.sample(6), model.decode(posterior.sample())):
        assert made.shape == x.shape
        assert made.min() >= 0 and made.max() <= 1


def test_bound_of_any_objective_is_that_of_the_plain_one() -> None:
    noise = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    expected = make(objective="vae").loss(images(), draws={"noise": noise})
    found = make(objective="iwae").elbo(images(), noise=noise)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.parts, expected.parts)


def test_any_sampler_will_do() -> None:
    class Mean(torch.nn.Module):
        def forward(self, params: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return params.chunk(2, 1)[0], params.new_zeros(())

    assert VAE(VAEConfig(**SMALL), Mean()).loss(images()).parts["kl"] == 0


@pytest.mark.parametrize("objective", ["vae", "beta_tc", "wae", "iwae"])
def test_bfloat16_autocast_and_channels_last(objective: str) -> None:
    model, x = make(objective=objective, width=8, mmd_weight=1.0), images()
    draws = model.draw("model", 6, torch.Generator().manual_seed(0))
    expected = model.loss(x, draws=draws).loss
    with torch.autocast("cpu", torch.bfloat16):
        low = model.backward("model", x, draws)
    torch.testing.assert_close(low.loss, expected.detach(), rtol=0.02, atol=0.2)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    model.to(memory_format=torch.channels_last)
    last = model.loss(x.contiguous(memory_format=torch.channels_last), draws=draws).loss
    torch.testing.assert_close(last, expected)


@pytest.mark.slow
def test_compile_of_encode_and_decode() -> None:
    model, x = make(), images()
    posterior = torch.compile(model.encode, backend="aot_eager", fullgraph=True)(x).latent_dist
    torch.testing.assert_close(posterior.mean, model.latents(x))
    decode = torch.compile(model.decode, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(decode(posterior.mean), model.reconstruct(x))


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"image_size": 30}, ValueError, r"image_size: got 30, expected a multiple of 2\*\*stages = 4"),
        ({"objective": "vqvae"}, ValueError, "objective: got 'vqvae', expected one of 'vae', 'annealed', 'capacity'"),
        ({"likelihood": "laplace"}, ValueError, "likelihood: got 'laplace', expected one of 'bernoulli', 'gaussian'"),
        ({"gradient": "stl"}, ValueError, "gradient: got 'stl', expected one of 'standard', 'dreg'"),
        ({"beta": -1.0}, ValueError, r"beta: got -1\.0, expected a finite number >= 0"),
        ({"sigma": 0.0}, ValueError, r"sigma: got 0\.0, expected a finite number > 0"),
        ({"bins": 1}, ValueError, "bins: got 1, expected at least 2"),
        ({"samples": 0}, ValueError, "samples: got 0, expected a positive integer"),
        ({"warmup": 1.5}, TypeError, r"warmup: got 1\.5, expected a positive integer"),
        ({"objective": "beta_tc"}, ValueError, "dataset_size: got None, expected the number of training images"),
        ({"dataset_size": 0}, ValueError, "dataset_size: got 0"),
        ({"alpha": 1.5}, ValueError, r"alpha: got 1\.5 with mmd_weight=100\.0, expected alpha <= 1"),
        ({"alpha": 0.0, "mmd_weight": 0.5}, ValueError, "alpha: got"),
        ({"likelihood": "logistic_mixture", "channels": 2}, ValueError, "channels: got 2, expected 1 or 3"),
    ],
    ids=str,
)
def test_bad_config(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        VAEConfig(**{**SMALL, **wrong})
