"""Lab against scikit-image; the 313 bins against their published extent; coding, weights and decoding."""

from __future__ import annotations

import json
import math

import pytest
import torch
from skimage import color
from torch import Tensor

from genmod.pretext import Colorization
from genmod.pretext.ab_bins import ab_bins, annealed_mean, rebalancing_weights, smooth_prior, soft_encode
from genmod.pretext.lab import lab_to_rgb, rgb_to_lab

# The list that Zhang et al. published: for every a = -90, -80, ..., 100, the least and the greatest b.
PUBLISHED = [
    (50, 90), (20, 90), (0, 90), (-20, 90), (-30, 100), (-40, 100), (-50, 100), (-50, 100), (-60, 100), (-70, 100),
    (-80, 90), (-80, 90), (-90, 90), (-100, 90), (-100, 80), (-110, 80), (-110, 80), (-110, 70), (-110, 70), (-90, 0),
]  # fmt: skip


def cube(steps: int = 18) -> Tensor:
    """All colours of a coarse grid, float64 `[1, 3, steps**2, steps]`."""
    axis = torch.linspace(0, 1, steps, dtype=torch.float64)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).reshape(1, 3, steps**2, steps)


def image_last(x: Tensor):
    return x[0].permute(1, 2, 0).numpy()


# ---- Lab


def test_lab_is_that_of_scikit_image():
    rgb = cube()
    expected = color.rgb2lab(image_last(rgb))
    assert abs(image_last(rgb_to_lab(rgb)) - expected).max() < 1e-9
    assert abs(image_last(rgb_to_lab(rgb.float())) - expected).max() < 1e-3


def test_lab_back_to_rgb():
    lab = rgb_to_lab(cube())
    assert abs(image_last(lab_to_rgb(lab)) - color.lab2rgb(image_last(lab))).max() < 1e-5
    torch.testing.assert_close(lab_to_rgb(lab), cube(), rtol=0, atol=1e-12)
    torch.testing.assert_close(lab_to_rgb(lab.float()), cube().float(), rtol=0, atol=1e-4)


def test_colours_that_no_screen_has_are_cut_off_as_in_scikit_image():
    axis = torch.linspace(-110, 110, 23, dtype=torch.float64)
    lab = torch.stack(torch.meshgrid(torch.linspace(0, 100, 11, dtype=torch.float64), axis, axis, indexing="ij"))
    lab = lab.reshape(1, 3, 11 * 23, 23)
    with pytest.warns(UserWarning, match="negative Z"):
        expected = color.lab2rgb(image_last(lab))
    assert abs(image_last(lab_to_rgb(lab)) - expected).max() < 1e-5


def test_lab_of_half_precision_and_of_other_things():
    assert rgb_to_lab(torch.rand(1, 3, 2, 2, dtype=torch.bfloat16)).dtype == torch.float32
    with pytest.raises(ValueError, match=r"rgb: got shape \(1, 1, 4, 4\)"):
        rgb_to_lab(torch.rand(1, 1, 4, 4))
    with pytest.raises(TypeError, match=r"lab: got dtype torch\.uint8"):
        lab_to_rgb(torch.zeros(3, 4, 4, dtype=torch.uint8))


# ---- bins


def test_the_bins_are_the_published_ones():
    expected = [
        (a, b) for a, (low, high) in zip(range(-90, 101, 10), PUBLISHED, strict=True) for b in range(low, high + 1, 10)
    ]
    assert len(expected) == 313
    assert ab_bins().tolist() == [list(map(float, point)) for point in expected]


def test_soft_encoding_is_that_of_a_search_through_all_bins():
    ab = rgb_to_lab(cube())[:, 1:]
    bins, weights = soft_encode(ab)
    centres = ab_bins().double()
    distance = torch.cdist(ab.flatten(2)[0].T, centres)
    near = distance.topk(5, largest=False).values
    assert torch.allclose(distance.gather(1, bins[0].flatten(1).T), near, atol=1e-6)
    expected = torch.exp(-near.square() / 50)
    expected /= expected.sum(1, keepdim=True)
    torch.testing.assert_close(weights[0].flatten(1).T, expected, rtol=1e-5, atol=1e-6)


def test_soft_encoding_is_a_distribution_with_the_nearest_bin_first():
    ab = rgb_to_lab(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))[:, 1:]
    bins, weights = soft_encode(ab)
    assert bins.shape == weights.shape == (4, 5, 8, 8)
    torch.testing.assert_close(weights.sum(1), torch.ones(4, 8, 8))
    assert (weights.diff(dim=1) <= 0).all() and (weights > 0).all()
    assert (bins.sort(1).values.diff(dim=1) > 0).all()
    assert float((ab_bins()[bins[:, 0]].movedim(-1, 1) - ab).abs().max()) <= 10
    with pytest.raises(ValueError, match="ab: got shape"):
        soft_encode(torch.rand(3, 4, 4))
    with pytest.raises(ValueError, match="sigma: got 0"):
        soft_encode(ab, 0)


def test_weights_have_expectation_one_and_favour_what_is_rare():
    counts = torch.zeros(313)
    counts[150], counts[20] = 1000, 10
    prior = smooth_prior(counts)
    assert float(prior.sum()) == pytest.approx(1)
    assert prior[150] == prior.max() and prior[149] > prior[140]
    for mix in (0.0, 0.5, 1.0):
        weights = rebalancing_weights(prior.clamp(min=1e-9), mix)
        assert float((weights * prior).sum()) == pytest.approx(1, rel=1e-5)
        assert weights[20] > weights[150] if mix < 1 else torch.allclose(weights, torch.ones_like(weights))
    assert rebalancing_weights(prior).max() / rebalancing_weights(prior).min() < 2 * 313
    with pytest.raises(ValueError, match="counts"):
        smooth_prior(torch.zeros(313))
    with pytest.raises(ValueError, match="mix: got 2"):
        rebalancing_weights(prior, 2)


def test_annealed_mean_goes_from_the_mode_to_the_mean():
    logits = torch.full((1, 313, 1, 2), -50.0)
    logits[0, 40], logits[0, 200] = 1.0, 0.0
    first, second = ab_bins()[40], ab_bins()[200]
    torch.testing.assert_close(annealed_mean(logits, 1e-3)[0, :, 0, 0], first)
    share = math.e / (1 + math.e)
    torch.testing.assert_close(annealed_mean(logits, 1.0)[0, :, 0, 1], share * first + (1 - share) * second)
    share = math.exp(1 / 0.38) / (1 + math.exp(1 / 0.38))
    torch.testing.assert_close(annealed_mean(logits)[0, :, 0, 1], share * first + (1 - share) * second)
    with pytest.raises(ValueError, match="temperature: got 0"):
        annealed_mean(logits, 0)
    with pytest.raises(ValueError, match="logits: got shape"):
        annealed_mean(logits[:, :300])


# ---- task


def photos(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_input_and_target_are_the_image():
    x = photos()
    light, ab = Colorization(stride=1).transform(x)
    torch.testing.assert_close(lab_to_rgb(torch.cat([100 * light, ab], 1)), x, rtol=0, atol=1e-4)
    coarse = Colorization(stride=4).transform(x)[1]
    torch.testing.assert_close(coarse, ab.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((3, 5)))
    assert torch.equal(Colorization().view(x), light)


def test_loss_is_the_papers_formula():
    x = photos()
    task = Colorization(stride=4).fit(x)
    ab = task.transform(x)[1]
    output = torch.randn(3, 313, 2, 2, generator=torch.Generator().manual_seed(2))
    bins, soft = soft_encode(ab)
    dense = torch.zeros(3, 313, 2, 2).scatter(1, bins, soft)
    rare = rebalancing_weights(torch.tensor(task.prior), 0.5)[dense.argmax(1)]
    expected = -(rare * (dense * output.log_softmax(1)).sum(1)).mean()
    assert float(task.loss(output, ab)) == pytest.approx(float(expected), rel=1e-5)
    plain = Colorization(stride=4)
    assert plain.chance(x, ab) == pytest.approx(math.log(313), rel=1e-5)
    # The truth, nearly certain, costs what its spread over bins costs.
    certain = torch.full_like(dense, -30).where(dense == 0, dense.log())
    entropy = -(soft * soft.log()).sum(1).mean()
    assert float(plain.loss(certain, ab)) == pytest.approx(float(entropy), rel=1e-4)


def test_measured_prior_makes_grey_common():
    grey = torch.rand(2, 1, 8, 8).expand(-1, 3, -1, -1)
    task = Colorization().fit(grey)
    assert ab_bins()[int(torch.tensor(task.prior).argmax())].tolist() == [0, 0]
    assert Colorization(**json.loads(json.dumps({"prior": task.prior}))) == task


def test_colours_of_a_perfect_answer():
    x = torch.tensor([0.8, 0.3, 0.2])[None, :, None, None].expand(1, 3, 8, 8).contiguous()
    task = Colorization("regression")
    light, ab = task.transform(x)
    torch.testing.assert_close(task.colors(light, ab / 110), x, rtol=0, atol=1e-3)
    assert float(task.loss(ab / 110, ab)) == pytest.approx(0, abs=1e-12)
    bins, soft = soft_encode(ab)
    logits = torch.full((1, 313, 2, 2), -60.0).scatter(1, bins, soft.log())
    assert float((Colorization().colors(light, logits) - x).abs().max()) < 0.06


def test_colorization_refuses():
    with pytest.raises(ValueError, match=r"got 1 channel\(s\), expected 3"):
        Colorization().transform(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="multiples of stride=4"):
        Colorization().transform(torch.rand(2, 3, 6, 8))
    for options in ({"kind": "gan"}, {"stride": 3}, {"mix": 1.5}, {"temperature": 0.0}, {"prior": (1.0,)}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Colorization(**options)
