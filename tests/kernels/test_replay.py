"""Launchers that are done again: on the CPU, with a kernel that copies memory by address, as a compiled one does."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from genmod.kernels import launch, replay


class Copy:
    """Stands for a Triton kernel: `(target, source, bytes)`, addresses or tensors. Counts how it was started."""

    arg_names = ("target", "source", "size")

    def __init__(self) -> None:
        self.decided = self.started = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(target, source, size, stream=None, num_warps=None):
            if isinstance(target, torch.Tensor):
                self.decided += 1
                target, source = target.data_ptr(), source.data_ptr()
            else:
                self.started += 1
            ctypes.memmove(target, source, size)
            return self

        return run


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(launch, "current_stream", lambda: 0)
    return Copy()


def copied(kernel, source):
    target = torch.empty_like(source)
    size = source.numel() * source.element_size()
    launch.launch(kernel, 1, 4, source, {"target": target, "source": source, "size": size})
    return target


def test_the_second_call_starts_what_the_first_decided(kernel):
    call = replay.remembering(lambda x, factor: copied(kernel, x) * factor)
    for count in range(3):
        x = torch.randn(5, 7)
        assert torch.equal(call(x, 2.0), x * 2)
        assert (kernel.decided, kernel.started) == (1, count)


def test_another_description_is_decided_anew(kernel):
    call = replay.remembering(lambda x, factor: copied(kernel, x) * factor)
    several = [torch.randn(4, 6), torch.randn(6, 4), torch.randn(4, 6).double(), torch.randn(25)[1:].view(4, 6)]
    for x in several * 2:
        for factor in (2.0, 3.0):
            assert torch.equal(call(x, factor), x * factor)
    assert kernel.decided == kernel.started == 2 * len(several)


def test_views_of_inputs_and_of_what_was_made(kernel):
    def launcher(x):
        whole = x.new_empty(2, 6)
        first, second = whole.unbind()
        for target, source in ((first, x[1]), (second, x[0])):
            launch.launch(kernel, 1, 4, x, {"target": target, "source": source, "size": 24})
        return whole, torch.cat((whole[0], x[:, 2])), x.new_empty(0)

    call = replay.remembering(launcher)
    for _ in range(2):
        x = torch.randn(2, 6)
        whole, joined, nothing = call(x)
        assert torch.equal(whole, x.flip(0))
        assert torch.equal(joined, torch.cat((x[1], x[:, 2])))
        assert nothing.shape == (0,)
    assert (kernel.decided, kernel.started) == (2, 2)


def test_inputs_that_share_memory_only_the_first_time(kernel):
    call = replay.remembering(lambda x, y: (copied(kernel, x), copied(kernel, y)))
    x, y = torch.randn(3), torch.randn(3)
    packed = torch.randn(6)
    for a, b in ((x, x), (x, y), (packed[:3], packed[3:]), (y, x)):
        for expected, found in zip((a, b), call(a, b), strict=True):
            assert torch.equal(found, expected)


def test_operators_in_place_and_optional_inputs(kernel):
    def launcher(x, y, scales):
        total = copied(kernel, x)
        if y is not None:
            total.add_(y)
        return total.mul_(sum(scales))

    call = replay.remembering(launcher)
    for _ in range(2):
        x, y = torch.randn(2, 3), torch.randn(2, 3)
        torch.testing.assert_close(call(x, y, [1.0, 2.0]), (x + y) * 3)
        torch.testing.assert_close(call(x, None, [1.0, 2.0]), x * 3)


def test_what_may_be_a_view_or_a_copy(kernel):
    """`contiguous` copies where it has to; a kernel then reads the copy, made anew each time."""
    call = replay.remembering(lambda x: copied(kernel, x.contiguous()))
    for _ in range(3):
        for x in (torch.randn(3, 4), torch.randn(4, 3).t()):
            assert torch.equal(call(x), x)


def test_nothing_is_returned_twice(kernel):
    """Results without elements have no address to tell them apart, yet each is a tensor of its own."""
    call = replay.remembering(lambda x: (x.new_empty(0), copied(kernel, x), x.new_empty(0)))
    for _ in range(2):
        x = torch.randn(0) if _ else torch.randn(3)
        first, second, third = call(x)
        assert len({id(t) for t in (x, first, second, third)}) == 4
        assert torch.equal(second, x)


def test_one_nothing_returned_twice_becomes_two(kernel):
    def launcher(x):
        nothing = x.new_empty(0)
        return nothing, copied(kernel, x), nothing

    call = replay.remembering(launcher)
    for count in range(3):
        x = torch.randn(3)
        first, second, third = call(x)
        assert torch.equal(second, x)
        assert first.shape == third.shape == (0,)
        assert count == 0 or first is not third


def test_operators_that_return_nothing_for_something(kernel):
    def launcher(grad, x, weight):
        dx, d_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1], [0], [1], False, [0], 1, [False, True, False]
        )
        assert dx is None
        return copied(kernel, d_weight)

    call = replay.remembering(launcher)
    for _ in range(2):
        grad, x, weight = torch.randn(1, 1, 3), torch.randn(1, 1, 5), torch.randn(1, 1, 3)
        expected = torch.stack([(grad[0, 0] * x[0, 0, i : i + 3]).sum() for i in range(3)]).view(1, 1, 3)
        torch.testing.assert_close(call(grad, x, weight), expected)


@pytest.mark.parametrize("first", [True, False])
def test_autocast_changes_nothing(kernel, first):
    call = replay.remembering(lambda x, y: copied(kernel, x) @ y)
    x, y = torch.randn(3, 4), torch.randn(4, 5)
    for enabled in (first, not first):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found = call(x, y)
        assert found.dtype == torch.float32
        assert torch.equal(found, x @ y)


def test_sizes_that_never_come_back_are_forgotten(kernel, monkeypatch):
    monkeypatch.setattr(replay, "_LIMIT", 4)
    call = replay.remembering(lambda x: copied(kernel, x))
    for size in range(1, 20):
        assert call(torch.ones(size)).sum() == size
    assert kernel.decided == 19


def test_a_failure_is_not_remembered(kernel):
    def launcher(x):
        if fail:
            raise RuntimeError("no memory left")
        return copied(kernel, x)

    call, x, fail = replay.remembering(launcher), torch.randn(3), True
    with pytest.raises(RuntimeError, match="no memory"):
        call(x)
    fail = False
    assert torch.equal(call(x), x)
    assert torch.equal(call(x), x)
