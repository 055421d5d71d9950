"""Clips and the tasks on them: motion, order and future are what they are said to be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from genmod.pretext import FutureFrames, TemporalOrder, clips
from genmod.pretext.temporal_order import orders


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 60, size: int = 16) -> Tensor:
    return torch.rand(n, 2, size, size, generator=seeded(7))


def numbered(n: int, length: int) -> Tensor:
    """Clips whose frames show their own number."""
    return torch.arange(length).float()[None, :, None, None, None].expand(n, length, 1, 2, 2)


# ---- clips


def test_panning_shows_the_image_through_a_moving_window():
    x = images()
    frames, positions = clips.pan(x, 5, 6, speed=2, generator=seeded())
    assert frames.shape == (60, 5, 2, 6, 6) and frames.is_contiguous()
    for clip, path, image in zip(frames, positions.tolist(), x):
        for frame, (top, left) in zip(clip, path):
            assert torch.equal(frame, image[:, top : top + 6, left : left + 6])


def test_translated_images_lie_whole_on_a_black_canvas():
    x = images(size=6)
    frames, positions = clips.translate(x, 4, 12, speed=2, generator=seeded())
    for clip, path, image in zip(frames, positions.tolist(), x):
        for frame, (top, left) in zip(clip, path):
            assert torch.equal(frame[:, top : top + 6, left : left + 6], image)
            assert float(frame.sum()) == pytest.approx(float(image.sum()), rel=1e-5)


@pytest.mark.parametrize("make", [lambda g, d: clips.pan(images(500), 4, 7, speed=3, direction=d, generator=g)])
def test_motion_is_steady_and_covers_what_it_may(make):
    for direction in ("any", "right"):
        positions = make(seeded(), direction).positions
        step = positions.diff(dim=1)
        assert torch.equal(step, step[:, :1].expand_as(step))
        steps = {tuple(one) for one in step[:, 0].tolist()}
        if direction == "right":
            assert steps == {(0, 1), (0, 2), (0, 3)}
        else:
            assert steps == {(y, x) for y in range(-3, 4) for x in range(-3, 4)} - {(0, 0)}
        # The window gets to every edge and never beyond.
        assert positions.flatten(0, 1).min(0).values.tolist() == [0, 0]
        assert positions.flatten(0, 1).max(0).values.tolist() == [9, 9]


def test_clips_by_seed():
    first, again, other = (clips.pan(images(), 3, 8, generator=seeded(seed)).frames for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_clips_that_cannot_be():
    with pytest.raises(ValueError, match=r"images: got 16 x 16 pixels, expected at least .* = 17"):
        clips.pan(images(), 4, 8, speed=3)
    with pytest.raises(ValueError, match="size: got 18, expected at least 19"):
        clips.translate(images(), 4, 18)
    with pytest.raises(ValueError, match="direction: got 'up'"):
        clips.pan(images(), 2, 8, direction="up")
    with pytest.raises(ValueError, match="frames: got 0"):
        clips.pan(images(), 0, 8)
    with pytest.raises(TypeError, match=r"speed: got 1\.5"):
        clips.translate(images(), 2, 20, speed=1.5)
    with pytest.raises(TypeError, match=r"images: got dtype torch\.int64"):
        clips.pan(torch.zeros(1, 1, 9, 9, dtype=torch.int64), 2, 4)


# ---- temporal order


def shown(task: TemporalOrder, length: int, n: int = 3000) -> tuple[Tensor, Tensor]:
    """The numbers of the frames that a task shows, and its targets."""
    frames, target = task.transform(numbered(n, length), seeded())
    return frames[:, :, 0, 0, 0].long(), target


def test_before_and_after():
    times, target = shown(TemporalOrder("pair"), 6)
    assert torch.equal(target, (times[:, 0] < times[:, 1]).long())
    assert len({tuple(pair) for pair in times.tolist()}) == 30
    assert float(target.float().mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("length", [5, 7, 10])
def test_verification_shows_the_middle_frame_in_its_place_or_not(length):
    times, target = shown(TemporalOrder("verification"), length)
    first, middle, last = times.unbind(1)
    between = (middle - first) * (last - middle) > 0
    assert torch.equal(target, between.long())
    stride = (length - 1) // 4
    assert set((first - last).abs().tolist()) == {2 * stride}
    # Each of the six tuples comes up, forward and backward: (b, c, d), (b, a, d), (b, e, d).
    starts = length - 4 * stride
    assert len({tuple(row) for row in times.tolist()}) == 6 * starts
    assert float(target.float().mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("frames", [3, 4, 5])
def test_sorting_target_names_the_order(frames):
    task = TemporalOrder("sorting", frames)
    assert task.num_classes == math.factorial(frames) // 2 == len(orders(frames))
    times, target = shown(task, 11)
    rank = times.argsort(1).argsort(1)
    assert torch.equal(rank, orders(frames)[target])
    assert set(target.tolist()) == set(range(task.num_classes))
    steps = times.sort(1).values.diff(dim=1)
    assert set(steps.flatten().tolist()) == {10 // (frames - 1)}


def test_no_order_is_the_reversal_of_another():
    rows = {tuple(row) for row in orders(4).tolist()}
    assert len(rows) == 12 and not any(row[::-1] in rows for row in rows)
    assert orders(4)[0].tolist() == [0, 1, 2, 3]


def test_frames_are_not_changed_by_taking_them():
    x = torch.rand(8, 6, 3, 4, 4, generator=seeded())
    task = TemporalOrder("pair")
    draws = task.draw(8, (6, 3, 4, 4), seeded(1))
    frames, _ = task.transform(x, draws=draws)
    times, _ = task.times(x, draws["uniform"])
    for clip, taken, at in zip(x, frames, times):
        assert torch.equal(clip[at], taken)


def test_temporal_order_refuses():
    with pytest.raises(ValueError, match="kind: got 'shuffle'"):
        TemporalOrder("shuffle")
    with pytest.raises(ValueError, match="frames: got 6, expected an integer from 3 to 5"):
        TemporalOrder("sorting", 6)
    with pytest.raises(ValueError, match="x: got clips of 4 frames, expected at least 5 for kind='verification'"):
        TemporalOrder().transform(numbered(2, 4))
    with pytest.raises(ValueError, match=r"expected \[B, T, C, H, W\]"):
        TemporalOrder().transform(torch.rand(2, 3, 8, 8))


# ---- future


def test_future_is_the_end_of_the_clip():
    past, future = FutureFrames(future=2).transform(numbered(3, 7))
    assert past[0, :, 0, 0, 0].tolist() == [0, 1, 2, 3, 4] and future[0, :, 0, 0, 0].tolist() == [5, 6]
    # Repeating frame 4 is wrong by 1 and by 2.
    assert FutureFrames(future=2).chance(past, future) == pytest.approx((1 + 4) / 2)
    with pytest.raises(ValueError, match="clips of 2 frames, expected more than future=2"):
        FutureFrames(future=2).transform(numbered(3, 2))
    with pytest.raises(ValueError, match="future: got 0"):
        FutureFrames(future=0)
