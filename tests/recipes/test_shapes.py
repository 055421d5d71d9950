"""The shapes: every combination once, drawn where and as large as the factors say."""

from __future__ import annotations

import pytest
import torch

from genmod.recipes import shapes

SMALL = shapes.ShapesConfig(scales=2, rotations=3, positions=4)


@pytest.fixture(scope="module")
def small() -> shapes.Shapes:
    return shapes.make(SMALL)


def test_every_combination_once(small: shapes.Shapes):
    assert small.sizes == (3, 2, 3, 4, 4)
    assert small.images.shape == (3 * 2 * 3 * 4 * 4, 1, 32, 32) and small.images.dtype == torch.float32
    assert torch.equal(small.index(small.factors), torch.arange(len(small.images)))
    assert len(small.images.flatten(1).unique(dim=0)) == len(small.images)
    assert small.images.min() == 0 and small.images.max() == 1


def test_the_default_set():
    """Its number, that all images differ, and nothing but whole sixteenths of coverage."""
    made = shapes.make()
    assert made.images.shape == (17280, 1, 32, 32)
    coverage = made.images.flatten(1) * 16
    assert torch.equal(coverage, coverage.round())
    # Sprites move as they are, so all images differ if the sprites at one place do.
    at_one_place = made.images[(made.factors[:, 3:] == 5).all(1)].flatten(1)
    assert len(at_one_place) == 120 and len(at_one_place.unique(dim=0)) == 120


def test_positions_move_the_sprite_by_whole_pixels(small: shapes.Shapes):
    first = small.images[small.index(torch.tensor([2, 1, 1, 0, 0]))]
    moved = small.images[small.index(torch.tensor([2, 1, 1, 3, 2]))]
    assert torch.equal(moved, first.roll((2, 3), (1, 2)))


def test_the_square_is_where_and_as_large_as_its_factors_say(small: shapes.Shapes):
    side = torch.arange(32) + 0.5
    for scale, radius in ((0, 4.5), (1, 9.0)):
        for x in range(4):
            image = small.images[small.index(torch.tensor([0, scale, 0, x, 1]))][0]
            assert image.sum().item() == pytest.approx(2 * radius**2, rel=0.06)  # area of the square
            centre = (image.sum(0) @ side / image.sum(), image.sum(1) @ side / image.sum())
            assert [float(c) for c in centre] == pytest.approx([14.5 + x, 15.5], abs=0.02)


def test_rotation_turns_the_ellipse(small: shapes.Shapes):
    angles = []
    for rotation in range(3):
        image = small.images[small.index(torch.tensor([1, 1, rotation, 1, 1]))][0]
        y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        points = torch.stack([x.flatten(), y.flatten()])
        moments = points.cov(aweights=image.flatten())
        axis = torch.linalg.eigh(moments).eigenvectors[:, -1]
        angles.append(float(torch.rad2deg(torch.atan2(axis[1], axis[0])) % 180))
    assert [round(a) % 180 for a in angles] == [0, 30, 60]


def test_nothing_is_cut_off(small: shapes.Shapes):
    for edge in (small.images[..., 0, :], small.images[..., -1, :], small.images[..., 0], small.images[..., -1]):
        assert not edge.any()
    inside = small.images.sum((1, 2, 3)).unflatten(0, (18, 16))
    assert torch.equal(inside, inside[:, :1].expand(-1, 16))


def test_binary_images_and_the_same_bits_again(small: shapes.Shapes):
    binary = shapes.make(shapes.ShapesConfig(scales=1, rotations=2, positions=1, samples=1))
    assert binary.images.unique().tolist() == [0.0, 1.0]
    assert torch.equal(shapes.make(SMALL).images, small.images)


@pytest.mark.parametrize("n", [0, 1, 7, 48])
def test_balanced_samples(small: shapes.Shapes, n: int):
    drawn = small.balanced(n, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, small.balanced(n, torch.Generator().manual_seed(0)))
    for column, size in zip(small.factors[drawn].T, small.sizes):
        counts = column.bincount(minlength=size)
        assert counts.max() - counts.min() <= 1 and counts.sum() == n


def test_balanced_samples_with_a_fixed_factor(small: shapes.Shapes):
    drawn = small.factors[small.balanced(12, torch.Generator().manual_seed(0), shape=2, y=0)]
    assert drawn[:, 0].unique().tolist() == [2] and drawn[:, 4].unique().tolist() == [0]
    assert drawn[:, 3].bincount().tolist() == [3] * 4
    with pytest.raises(ValueError, match="unknown factors"):
        small.balanced(3, torch.Generator(), colour=1)
    with pytest.raises(ValueError, match="factors: expected values"):
        small.balanced(3, torch.Generator(), shape=3)
    with pytest.raises(ValueError, match="n: got -1"):
        small.balanced(-1, torch.Generator())


def test_an_image_set_for_other_recipes(small: shapes.Shapes):
    images = small.image_set(held_out=0.25)
    assert len(images.test) == 72 and len(images.train) == 216
    assert torch.equal(images.images, small.image_set(0.25).images)
    assert not torch.equal(images.images, small.images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": 0}, "scales: got 0"),
        ({"samples": 1.5}, "samples: got 1.5"),
        ({"radius": -1.0}, "radius: got -1.0"),
        ({"positions": 16}, "image_size: got 32, expected at least .* = 33"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        shapes.ShapesConfig(**options)


def test_bad_factors(small: shapes.Shapes):
    with pytest.raises(ValueError, match="factors: got torch.float32"):
        small.index(torch.zeros(5))
