"""Tasks on images: what their labels say is so, by construction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genmod.pretext import MissingPatch, NextStep, PredictSelf, Rotation
from genmod.pretext.rotation import quarter_turns


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 12, channels: int = 3, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, generator=seeded(7))


# ---- rotation


def test_turning_is_rot90_of_every_sample():
    x, turns = images(9), torch.arange(-4, 5)
    expected = torch.stack([sample.rot90(int(k), (-2, -1)) for sample, k in zip(x, turns)])
    assert torch.equal(quarter_turns(x, turns), expected)
    assert torch.equal(quarter_turns(x[:, None].expand(-1, 2, -1, -1, -1), turns)[:, 1], expected)


def test_turning_back_by_the_label_gives_the_image():
    x = images(40)
    turned, turns = Rotation().transform(x, seeded())
    assert torch.equal(quarter_turns(turned, -turns), x)
    assert turns.unique().tolist() == [0, 1, 2, 3]


def test_rotation_of_every_image_in_all_ways():
    x = images(5)
    turned, turns = Rotation(every=True).transform(x)
    assert turned.shape == (20, 3, 8, 8) and turns.bincount().tolist() == [5, 5, 5, 5]
    assert torch.equal(quarter_turns(turned, -turns), x.repeat(4, 1, 1, 1))


def test_only_squares_are_turned():
    with pytest.raises(ValueError, match=r"x: got shape \(2, 3, 8, 6\), expected square"):
        Rotation().transform(torch.rand(2, 3, 8, 6))
    with pytest.raises(ValueError, match="turns: got shape"):
        quarter_turns(images(3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(TypeError, match="every: got 1"):
        Rotation(every=1)


# ---- missing patch


@pytest.mark.parametrize("place", ["random", "center"])
def test_the_mask_is_one_block_and_only_it_is_cut(place):
    x = images(30, size=12)
    task = MissingPatch(size=0.4, place=place)
    cut, (whole, mask) = task.transform(x, seeded())
    assert torch.equal(whole, x) and mask.shape == (30, 1, 12, 12) and mask.dtype == torch.bool
    assert torch.equal(cut * ~mask, x * ~mask)
    height, width = task.block(12, 12)
    assert (height, width) == (5, 5)
    corners = []
    for one, image, sample in zip(mask[:, 0], cut, x):
        rows, columns = one.nonzero().unbind(1)
        top, left = int(rows.min()), int(columns.min())
        block = torch.zeros(12, 12, dtype=torch.bool)
        block[top : top + height, left : left + width] = True
        assert torch.equal(one, block)
        # The fill is one colour, that of what is left.
        assert torch.allclose(image[:, one], sample[:, ~one].mean(1, keepdim=True).expand(-1, 25), atol=1e-6)
        corners.append((top, left))
    assert set(corners) == {(3, 3)} if place == "center" else len(set(corners)) > 15


def test_random_blocks_reach_every_corner():
    mask = MissingPatch(size=0.5).transform(images(400, 1, 4), seeded())[1].mask
    assert mask.flatten(1).any(0).all()
    assert len({tuple(m.flatten().tolist()) for m in mask}) == 9


def test_filling_takes_only_the_block_from_the_output():
    x, output = images(4), images(8)[4:]
    task = MissingPatch()
    _, hole = task.transform(x, seeded())
    filled = task.filled(output, hole)
    assert torch.equal(filled * ~hole.mask, x * ~hole.mask) and torch.equal(filled * hole.mask, output * hole.mask)
    error = (output - x).square()[hole.mask.expand_as(x)].mean()
    assert float(task.loss(output, hole)) == pytest.approx(float(error), rel=1e-5)
    assert float(task.loss(x + 9.0 * ~hole.mask, hole)) == 0


def test_missing_patch_refuses():
    for options, message in [
        ({"size": 0.0}, "size: got 0.0, expected a finite number > 0"),
        ({"size": 1}, "size: got 1, expected less"),
        ({"place": "left"}, "place: got 'left'"),
        ({"adversarial": 1}, "adversarial: got 1"),
        ({"adversarial": -0.1}, "adversarial: got -0.1"),
    ]:
        with pytest.raises(ValueError, match=message):
            MissingPatch(**options)
    with pytest.raises(ValueError, match="leaves none"):
        MissingPatch(size=0.9).transform(torch.rand(1, 1, 2, 2))


# ---- predict self


def test_predict_self_and_its_noise():
    x = images()
    seen, target = PredictSelf().transform(x)
    assert seen is x and target is x
    noisy, target = PredictSelf(noise=0.5).transform(x.repeat(100, 1, 1, 1), seeded())
    assert target.shape == noisy.shape
    assert float((noisy - target).std()) == pytest.approx(0.5, rel=0.01)
    assert float((noisy - target).mean()) == pytest.approx(0, abs=0.01)


def test_chance_of_predict_self_is_the_mean_images_error():
    x = images()
    task = PredictSelf()
    assert task.chance(x, x) == pytest.approx(float(task.score(x.mean(0).expand_as(x).contiguous(), x)), rel=1e-5)
    with pytest.raises(ValueError, match="noise: got -1"):
        PredictSelf(noise=-1)
    with pytest.raises(TypeError, match=r"latent_dim: got 1\.5"):
        PredictSelf(latent_dim=1.5)


# ---- next step


def test_next_step_of_rows():
    x = images(4, 2, 6)
    seen, following = NextStep().transform(x)
    assert seen.shape == (4, 5, 12)
    assert torch.equal(seen[:, 1:], following[:, :-1])
    assert torch.equal(following[:, 2], x[:, :, 3].flatten(1))
    sequence = torch.rand(3, 7, 2)
    assert torch.equal(NextStep().transform(sequence)[1], sequence[:, 1:])
    with pytest.raises(ValueError, match="at least 2"):
        NextStep().transform(sequence[:, :1])


# ---- in common


@pytest.mark.parametrize("task", [Rotation(), MissingPatch(), PredictSelf(noise=0.3)], ids=lambda task: task.name)
def test_the_generator_decides(task):
    x = images(20)
    first, again, other = (task.transform(x, seeded(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    draws = task.draw(20, tuple(x.shape[1:]), seeded(0))
    assert all(len(tensor) == 20 for tensor in draws.values())
    assert torch.equal(task.transform(x, draws=draws)[0], first)
    # A part of the batch with its part of the draws is that part of the whole.
    part = task.transform(x[5:9], draws={name: tensor[5:9] for name, tensor in draws.items()})[0]
    assert torch.equal(part, first[5:9])


@pytest.mark.parametrize("task", [Rotation(), MissingPatch(), PredictSelf(noise=0.3)], ids=lambda task: task.name)
def test_inputs_of_another_kind(task):
    with pytest.raises(TypeError, match="x: got ndarray, expected a floating-point tensor"):
        task.transform(torch.rand(2, 1, 8, 8).numpy())
    with pytest.raises(TypeError, match=r"x: got dtype torch.uint8"):
        task.transform(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"x: got shape \(2, 8, 8\), expected \[B, C, H, W\]"):
        task.transform(torch.rand(2, 8, 8))
