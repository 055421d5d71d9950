"""Walks, directions, neighbours, mixtures, maps and inversion, on codes and generators that are known."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from genmod import latent
from genmod.nn import DiagonalGaussian


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


# -------------------------------------------------------------------------------------------------------- interpolation


@pytest.mark.parametrize("path", ["lerp", "slerp"])
def test_ways_begin_and_end_at_the_codes(path):
    a, b = normal(5, 8), normal(5, 8, seed=1)
    way = latent.interpolate(a, b, 7, path=path)
    assert way.shape == (5, 7, 8)
    assert torch.equal(way[:, 0], a) and torch.equal(way[:, -1], b)
    back = latent.interpolate(b, a, 7, path=path).flip(1)
    torch.testing.assert_close(way, back)


def test_lerp_is_even():
    torch.testing.assert_close(latent.lerp(torch.zeros(2), torch.tensor([2.0, 4.0]), 0.25), torch.tensor([0.5, 1.0]))


def test_slerp_turns_at_constant_speed_and_keeps_the_length():
    a, b = normal(16, dtype=torch.float64), normal(16, seed=1, dtype=torch.float64)
    b = b / b.norm() * a.norm()
    way = latent.interpolate(a, b, 9)
    torch.testing.assert_close(way.norm(dim=1), a.norm().expand(9))
    turns = torch.cosine_similarity(way[1:], way[:-1], dim=1)
    torch.testing.assert_close(turns, turns[:1].expand(8))
    # White's formula
    omega = torch.arccos(torch.cosine_similarity(a, b, dim=0))
    t = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(way, (((1 - t) * omega).sin() * a + (t * omega).sin() * b) / omega.sin())


def test_slerp_between_lengths_goes_straight_in_length():
    way = latent.interpolate(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]), 5)
    torch.testing.assert_close(way.norm(dim=1), torch.linspace(1, 3, 5))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_slerp_of_opposite_codes_turns_by_180_degrees(scale):
    a = torch.tensor([3.0, 4.0, 0.0]) * scale
    way = latent.interpolate(a, -a, 5)
    assert bool(way.isfinite().all())
    torch.testing.assert_close(way.double().norm(dim=1), a.double().norm().expand(5), rtol=1e-5, atol=0)
    assert abs(torch.cosine_similarity(way[2].double() / scale, a.double() / scale, dim=0)) < 1e-5
    assert torch.equal(way, latent.interpolate(a, -a, 5))


def test_slerp_near_opposite_and_near_equal_codes_is_smooth():
    a = normal(6, dtype=torch.float64)
    for other in (
        -a + 1e-9 * normal(6, seed=1, dtype=torch.float64),
        a + 1e-9 * normal(6, seed=1, dtype=torch.float64),
    ):
        way = latent.interpolate(a, other, 5)
        torch.testing.assert_close(way.norm(dim=1), a.norm().expand(5), rtol=1e-6, atol=0)
        steps = (way[1:] - way[:-1]).norm(dim=1)
        torch.testing.assert_close(steps, steps.mean().expand(4), rtol=1e-4, atol=0)


def test_slerp_with_zero_or_equal_codes_is_straight():
    a, zero = torch.tensor([1.0, 2.0]), torch.zeros(2)
    torch.testing.assert_close(latent.slerp(zero, a, 0.5), a / 2)
    torch.testing.assert_close(latent.slerp(a, zero, 0.25), a * 0.75)
    assert torch.equal(latent.slerp(zero, zero, 0.3), zero)
    torch.testing.assert_close(latent.slerp(a, 3 * a, 0.5), 2 * a)
    torch.testing.assert_close(latent.slerp(a, a, 0.7), a)


def test_slerp_in_half_precision_and_one_dimension():
    a, b = normal(4, 8).bfloat16(), normal(4, 8, seed=1).bfloat16()
    way = latent.interpolate(a, b, 3)
    assert way.dtype == torch.bfloat16
    torch.testing.assert_close(way, latent.interpolate(a.float(), b.float(), 3).bfloat16())
    torch.testing.assert_close(
        latent.slerp(torch.tensor([1.0]), torch.tensor([-1.0]), 0.5), torch.zeros(1), atol=1e-6, rtol=0
    )


def test_bad_interpolations():
    a = normal(3)
    with pytest.raises(ValueError, match="path: got 'arc'"):
        latent.interpolate(a, a, 3, path="arc")
    with pytest.raises(ValueError, match="steps: got 1"):
        latent.interpolate(a, a, 1)
    with pytest.raises(ValueError, match="end: got shape"):
        latent.interpolate(a, normal(4), 3)
    with pytest.raises(TypeError, match="end: got dtype"):
        latent.interpolate(a, a.double(), 3)
    with pytest.raises(TypeError, match="start: got list"):
        latent.slerp([1.0], a, 0.5)


# ------------------------------------------------------------------------------------------------------------ traversal


def test_traversal_moves_one_latent_per_row():
    z = normal(2, 4)
    grid = latent.traverse(z, [2, -1], [-1.0, 0.0, 1.0])
    assert grid.shape == (2, 2, 3, 4)
    expected = z[1].clone()
    expected[2] = 1.0
    assert torch.equal(grid[1, 0, 2], expected)
    assert grid[0, 1, :, 3].tolist() == [-1.0, 0.0, 1.0]
    assert torch.equal(grid[0, 1, :, :3], z[0, :3].expand(3, 3))
    with pytest.raises(ValueError, match=r"dims: got \[4\]"):
        latent.traverse(z, [4], [0.0])


def test_latents_in_order_of_information():
    mean = torch.tensor([[0.0, 2.0, 1.0], [0.0, -2.0, -1.0]])
    dims, kl = latent.by_information(mean, torch.zeros(2, 3))
    assert dims.tolist() == [1, 2, 0]
    torch.testing.assert_close(kl, torch.tensor([2.0, 0.5, 0.0]))


# ----------------------------------------------------------------------------------------------------------- attributes


def test_the_mean_difference():
    codes = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 5.0]])
    assert latent.attribute_vector(codes, torch.tensor([0, 0, 1])).tolist() == [3.0, 4.0]


def test_logistic_regression_leaves_out_what_comes_along():
    """The label is the sign of one axis, and a second axis merely correlates with it."""
    z = normal(4000, 3, dtype=torch.float64)
    z[:, 1] = 0.8 * z[:, 0] + 0.6 * z[:, 1]
    has = z[:, 0] > 0
    mean = latent.attribute_vector(z, has)
    direction = latent.attribute_vector(z, has, method="logistic", strength=100.0)
    assert mean[1] / mean[0] > 0.7
    assert abs(direction[1] / direction[0]) < 0.05 and abs(direction[2] / direction[0]) < 0.05
    assert direction[0].item() == pytest.approx(mean[0].item(), rel=0.05)


def test_arithmetic():
    a, b, c = normal(3, 5)
    torch.testing.assert_close(latent.analogy(a, b, c) - c, b - a)
    v = normal(5, seed=3)
    left = latent.without(normal(7, 5), v)
    torch.testing.assert_close(left @ v, torch.zeros(7), atol=1e-5, rtol=0)
    assert torch.equal(latent.without(a, torch.zeros(5)), a)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3), "0 of 3"),
        (torch.ones(3), "3 of 3"),
        (torch.tensor([0, 1, 2]), "0 and 1"),
        (torch.ones(2), r"labels: got shape \(2,\)"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        latent.attribute_vector(normal(3, 2), labels)


# ----------------------------------------------------------------------------------------------------------- neighbours


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_nearest_against_all_pairs(metric, chunk):
    queries, codes = normal(20, 5, dtype=torch.float64), normal(50, 5, seed=1, dtype=torch.float64)
    if metric == "euclidean":
        full = (queries[:, None] - codes).norm(dim=2)
    else:
        full = 1 - torch.cosine_similarity(queries[:, None], codes, dim=2)
    expected = full.topk(4, largest=False)
    found = latent.nearest(queries, codes, 4, metric=metric, chunk=chunk)
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.distances, expected.values)


def test_nearest_of_itself_ties_and_close_codes():
    codes = torch.zeros(10, 3)
    assert latent.nearest(codes, codes, 2, chunk=3).indices.tolist() == [[0, 1]] * 10  # the first of equals
    others = latent.nearest(codes, codes, 1, exclude_self=True, chunk=3).indices
    assert others.flatten().tolist() == [1, *[0] * 9]
    far = torch.tensor([[1e4], [1e4 + 0.5], [1e4 + 2]])  # the expanded square would see distances of 0
    assert latent.nearest(far[:1], far, 3).distances.tolist() == [[0.0, 0.5, 2.0]]


def test_nearest_keeps_no_matrix_of_all_pairs(monkeypatch):
    seen = []
    cdist = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda *a, **k: seen.append(cdist(*a, **k).numel()) or cdist(*a, **k))
    latent.nearest(normal(100, 2), normal(90, 2), 3, chunk=10)
    assert max(seen) == 100 and len(seen) == 90


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: got 0"),
        ({"k": 6}, "from 1 to 5"),
        ({"k": 5, "exclude_self": True}, "from 1 to 4"),
        ({"metric": "angle"}, "metric: got 'angle'"),
        ({"chunk": 0}, "chunk: got 0"),
    ],
)
def test_bad_searches(options, message):
    with pytest.raises(ValueError, match=message):
        latent.nearest(normal(5, 2), normal(5, 2), **{"k": 1, **options})


# ------------------------------------------------------------------------------------------- components and mixtures


def test_principal_components_of_a_known_covariance():
    axes = torch.linalg.qr(normal(4, 4, dtype=torch.float64)).Q
    z = normal(500, 4, seed=1, dtype=torch.float64)
    z = torch.linalg.qr(z - z.mean(0)).Q * math.sqrt(499)  # exactly uncorrelated, with variance 1
    scales = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    codes = (z * scales) @ axes + 7.0
    found = latent.principal_components(codes)
    torch.testing.assert_close(found.variance, scales.square())
    torch.testing.assert_close((found.directions @ axes.T).abs(), torch.eye(4, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.restore(found.project(codes)), codes)
    two = latent.principal_components(codes, 2)
    assert two.share.sum().item() == pytest.approx(13 / 14.25)
    assert two.project(codes[:5]).shape == (5, 2)
    with pytest.raises(ValueError, match="k: got 5"):
        latent.principal_components(codes, 5)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_a_mixture_finds_two_clusters(covariance):
    codes = torch.cat([normal(300, 3) * 0.2 + 3, normal(100, 3, seed=1) * 0.5 - 3])
    mixture = latent.fit_mixture(codes, 2, covariance=covariance)
    order = mixture.weights.argsort(descending=True)
    assert mixture.weights[order].tolist() == pytest.approx([0.75, 0.25], abs=1e-3)
    torch.testing.assert_close(mixture.means[order], torch.tensor([[3.0] * 3, [-3.0] * 3]), atol=0.15, rtol=0)
    drawn = mixture.sample(4000, seeded())
    assert torch.equal(drawn, mixture.sample(4000, seeded())) and drawn.dtype == codes.dtype
    assert (drawn[:, 0] > 0).float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert drawn[drawn[:, 0] > 0].std(0).tolist() == pytest.approx([0.2] * 3, abs=0.03)


def test_log_prob_of_a_mixture_against_the_formula():
    mixture = latent.GaussianMixture(
        torch.tensor([0.3, 0.7]), torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.stack([torch.eye(2), 2 * torch.eye(2)])
    )
    z = torch.tensor([0.5, 1.0])
    expected = 0.3 * math.exp(-0.5 * 1.25) / (2 * math.pi) + 0.7 * math.exp(-0.5 * 1.25 / 4) / (2 * math.pi * 4)
    assert mixture.log_prob(z).exp().item() == pytest.approx(expected)
    assert mixture.log_prob(z.expand(4, 5, 2)).shape == (4, 5)
    assert mixture.sample(0).shape == (0, 2)


def test_a_mixture_of_one_has_the_moments_of_the_codes():
    codes = normal(50, 3, dtype=torch.float64) @ normal(3, 3, seed=1, dtype=torch.float64)
    mixture = latent.fit_mixture(codes, 1)
    torch.testing.assert_close(mixture.means[0], codes.mean(0))
    covariance = mixture.factors[0] @ mixture.factors[0].T
    torch.testing.assert_close(covariance, codes.T.cov(correction=0), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="k: got 51"):
        latent.fit_mixture(codes, 51)
    with pytest.raises(ValueError, match="covariance: got 'tied'"):
        latent.fit_mixture(codes, 2, covariance="tied")


def test_the_aggregate_posterior_draws_evenly():
    mean, logvar = torch.arange(4.0)[:, None] * 100, torch.full((4, 1), 2 * math.log(0.1))
    z = latent.from_aggregate_posterior(mean, logvar, 4000, seeded())
    nearest = (z / 100).round().flatten()
    assert [int((nearest == i).sum()) for i in range(4)] == [1000] * 4
    assert (z - nearest[:, None] * 100).std().item() == pytest.approx(0.1, abs=0.01)
    codes = latent.from_aggregate_posterior(mean, None, 3, seeded())
    assert len({float(c) for c in codes}) == 3
    assert latent.from_aggregate_posterior(mean, None, 0).shape == (0, 1)
    with pytest.raises(ValueError, match="n: got -1"):
        latent.from_aggregate_posterior(mean, None, -1)
    with pytest.raises(ValueError, match="mean, logvar: got shapes"):
        latent.from_aggregate_posterior(mean, logvar[:2], 1)


# ----------------------------------------------------------------------------------------------------------------- maps


def clusters() -> torch.Tensor:
    return torch.cat([normal(30, 5) * 0.1 + 4, normal(30, 5, seed=1) * 0.1 - 4])


# The real umap-learn is optional; its first call compiles for some twenty seconds.
UMAP = pytest.param(
    "umap",
    marks=[pytest.mark.slow, pytest.mark.skipif(not find_spec("umap"), reason="umap-learn is not installed")],
)


@pytest.mark.parametrize("method", ["pca", "tsne", UMAP])
def test_maps_keep_clusters_apart(method):
    points = latent.project(clusters(), method=method)
    assert points.shape == (60, 2) and points.dtype == torch.float32
    a, b = points[:30], points[30:]
    assert (a.mean(0) - b.mean(0)).norm() > 2 * max(a.std(0).max(), b.std(0).max())
    assert latent.nearest(points, points, 3, exclude_self=True).indices[:30].max() < 30
    torch.testing.assert_close(points, latent.project(clusters(), method=method))
    assert method in latent.methods()


def test_a_map_of_one_dimension():
    line = latent.project(torch.arange(4.0)[:, None])
    assert line[:, 1].tolist() == [0.0] * 4 and line[:, 0].abs().tolist() == [1.5, 0.5, 0.5, 1.5]


@pytest.mark.parametrize("method", ["pca", "tsne", UMAP])
@pytest.mark.parametrize("shape", [(3, 2), (4, 2), (6, 1)], ids=str)
def test_maps_of_few_codes(method, shape):
    points = latent.project(normal(*shape), method=method)
    assert points.shape == (shape[0], 2) and bool(points.isfinite().all())


def test_umap_gets_its_seed_and_neighbours(monkeypatch):
    """With a stand-in, which says what it was told."""
    seen = {}

    class UMAP:
        def __init__(self, **options):
            seen.update(options)

        def fit_transform(self, codes):
            return codes[:, :2].astype(np.float64)

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    points = latent.project(clusters(), method="umap", seed=7, perplexity=5)
    assert torch.equal(points, clusters()[:, :2]) and seen["n_neighbors"] == 5 and seen["random_state"] == 7


def test_umap_or_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ModuleNotFoundError, match="pip install umap-learn"):
        latent.project(clusters(), method="umap")


def test_bad_maps():
    with pytest.raises(ValueError, match="method: got 'lle'"):
        latent.project(clusters(), method="lle")
    with pytest.raises(ValueError, match="not finite"):
        latent.project(clusters() * math.nan)
    with pytest.raises(ValueError, match="at least three"):
        latent.project(normal(2, 2))


# ------------------------------------------------------------------------------------------------------------ inversion


class Generator(nn.Module):
    """Smooth, with a known code behind every image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 16))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.body(z)).unflatten(1, (1, 4, 4))


@pytest.mark.parametrize(("optimizer", "tolerance"), [("adam", 1e-5), ("lbfgs", 1e-7)])
def test_inversion_finds_the_code(optimizer, tolerance):
    generator, z = Generator(), normal(4, 3, seed=5)
    images = generator(z).detach()
    steps = 300 if optimizer == "adam" else 100
    found = latent.invert(generator, images, 3, optimizer=optimizer, steps=steps, restarts=3, generator=seeded())
    assert found.distance.max() < tolerance
    torch.testing.assert_close(found.z, z, atol=0.05, rtol=0)
    torch.testing.assert_close(found.images, images, atol=0.02, rtol=0)
    assert found.restarts.shape == (3, 4) and torch.equal(found.restarts.min(0).values, found.loss)
    assert all(p.grad is None for p in generator.parameters())


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_inversion_is_deterministic_and_of_each_image_alone(optimizer):
    generator = Generator()
    images = generator(normal(5, 3, seed=5)).detach()
    options = {"optimizer": optimizer, "steps": 20, "restarts": 2}
    together = latent.invert(generator, images, 3, generator=seeded(), **options)
    again = latent.invert(generator, images, 3, generator=seeded(), **options)
    parts = latent.invert(generator, images, 3, generator=seeded(), chunk=2, **options)
    assert torch.equal(together.z, again.z)
    torch.testing.assert_close(together.z, parts.z, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(together.restarts, parts.restarts, atol=1e-5, rtol=1e-3)


def test_the_prior_pulls_to_the_middle():
    generator = Generator()
    images = generator(normal(3, 3, seed=5) * 2).detach()
    lengths = [
        latent.invert(generator, images, 3, prior_weight=weight, steps=60, generator=seeded()).z.norm()
        for weight in (0.0, 0.1, 100.0)
    ]
    assert lengths[0] > lengths[1] > lengths[2] and lengths[2] < 0.1


def test_inversion_by_features():
    generator = Generator()
    images = generator(normal(2, 3, seed=5)).detach()

    def blind(x: torch.Tensor) -> torch.Tensor:  # sees the upper half
        return x[:, :, :2]

    changed = images.clone()
    changed[:, :, 2:] = 0
    seen = latent.invert(generator, changed, 3, features=blind, steps=200, generator=seeded())
    assert seen.distance.max() < 1e-4
    assert latent.invert(generator, changed, 3, steps=200, generator=seeded()).distance.min() > 1e-3


def test_inversion_starts_at_the_given_code_and_survives_nan():
    generator, z = Generator(), normal(2, 3, seed=5)
    images = generator(z).detach()
    found = latent.invert(generator, images, 3, start=z, restarts=1, steps=1, lr=1e-6)
    assert found.distance.max() < 1e-8

    def fragile(codes: torch.Tensor) -> torch.Tensor:
        return torch.where(codes[:, :1, None, None] > 0.3, torch.nan, generator(codes))

    # The first search never sees the hole, others may fall into it.
    safe = latent.invert(fragile, images, 3, start=torch.full((2, 3), -1.0), restarts=4, steps=5, generator=seeded(3))
    assert bool(safe.z.isfinite().all()) and bool(safe.loss.isfinite().all()) and bool(safe.restarts.isinf().any())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, "latent_dim: got 0"),
        ({"restarts": 0}, "restarts: got 0"),
        ({"optimizer": "sgd"}, "optimizer: got 'sgd'"),
        ({"prior_weight": -1.0}, "prior_weight: got -1.0"),
        ({"start": torch.zeros(1, 3)}, r"start: got shape \(1, 3\)"),
        ({"images": torch.zeros(2, 1, 5, 5)}, r"decode: got images of shape \(1, 4, 4\)"),
        ({"images": torch.zeros(0, 1, 4, 4)}, "at least one image"),
    ],
)
def test_bad_inversions(options, message):
    arguments = {"images": torch.zeros(2, 1, 4, 4), "latent_dim": 3, **options}
    with pytest.raises(ValueError, match=message):
        latent.invert(Generator(), arguments.pop("images"), arguments.pop("latent_dim"), **arguments)


# ---------------------------------------------------------------------------------------------- whole data sets


class Model(nn.Module):
    """A linear "model" with the interface of genmod.models, whose batch norm betrays training mode."""

    latent_dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.norm.running_mean.fill_(1.0)

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(images.flatten(1)[:, :2])

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z.repeat(1, 2).reshape(-1, 1, 2, 2)

    def prior(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        return torch.randn(n, 2, generator=generator)


def test_whole_data_sets_in_chunks():
    model, images = Model(), normal(11, 1, 2, 2)
    model.norm.weight.requires_grad_(False)
    codes = latent.encode(model, images, chunk=4)
    torch.testing.assert_close(codes, latent.encode(model, images))
    torch.testing.assert_close(codes, (images.flatten(1)[:, :2] - 1) / math.sqrt(1 + 1e-5))
    assert model.training and model.norm.training and model.norm.num_batches_tracked == 0
    grid = latent.traverse(codes[:3], [0, 1], [0.0, 1.0])
    assert latent.decode(model, grid, chunk=5).shape == (3, 2, 2, 1, 2, 2)
    assert torch.equal(latent.decode(model.decode, grid), latent.decode(model, grid))
    assert latent.from_prior(model, 4, seeded()).shape == (4, 2)
    assert latent.encode(model, images[:0]).shape == (0, 2)
    with pytest.raises(ValueError, match="chunk: got 0"):
        latent.encode(model, images, chunk=0)


def test_posteriors_need_a_latent_dist():
    class VAE(Model):
        def encode(self, images):
            packed = torch.cat([images.flatten(1)[:, :2], torch.zeros(len(images), 2)], 1)
            return type("Encoding", (), {"latent_dist": DiagonalGaussian(packed)})

    images = normal(5, 1, 2, 2)
    mean, logvar = latent.posteriors(VAE(), images, chunk=2)
    assert torch.equal(mean, images.flatten(1)[:, :2]) and not logvar.any()

    class Plain(Model):
        def encode(self, images):
            return self.latents(images)

    with pytest.raises(TypeError, match="got Plain"):
        latent.posteriors(Plain(), images)


def test_import_brings_no_scikit_learn():
    code = "import sys, genmod.latent; print(any(m in sys.modules for m in ('sklearn', 'matplotlib', 'umap')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_missing_library_says_how_to_get_it(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'genmod-torch\[train\]'"):
        latent.fit_mixture(normal(10, 2), 2)
    assert np.isfinite(latent.metrics.mig(normal(40, 2), torch.arange(40)[:, None] % 4).score)  # needs none
