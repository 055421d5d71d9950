"""The row model: every tensor's elements are where the cut says, outputs keep their format, and little is copied."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from genmod import layout

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def counting(*shape: int, form: torch.memory_format = torch.contiguous_format) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape).contiguous(memory_format=form)


def in_memory_order(tensor: Tensor, form: torch.memory_format) -> Tensor:
    return (tensor if form == torch.contiguous_format else tensor.movedim(1, -1)).reshape(-1)


def assert_rows(like: Tensor, *tensors: Tensor | None) -> layout.Rows:
    cut = layout.rows(like, *tensors)
    assert cut.rows * cut.cols == like.numel()
    if cut.rows > 1:
        assert cut.rows == cut.rows_per_sample * like.shape[0]
    i = torch.arange(like.numel())
    for given, tensor, stride in zip(tensors, cut.tensors, cut.strides, strict=True):
        if given is None:
            assert tensor is None
            continue
        place = i // cut.cols * stride + i % cut.cols
        read = torch.as_strided(tensor, (int(place.max()) + 1,), (1,))[place]
        assert torch.equal(read, in_memory_order(given, layout.memory_format_of(like)))
    return cut


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("space", [(), (1,), (3,), (2, 3), (1, 1), (1, 5), (4, 1), (2, 2, 3)], ids=str)
def test_packed_tensors_are_read_and_written_in_place(space: tuple[int, ...], channels: int, batch: int) -> None:
    for form in {torch.contiguous_format, FORMATS.get(len(space) + 2, torch.contiguous_format)}:
        packed = counting(batch, 2 * channels, *space, form=form)
        mean, logvar = layout.split(packed, None)
        (gradient, rest), views = layout.empty_gradients(packed, None, 1)
        assert gradient.shape == packed.shape
        assert rest.shape == (0,)
        gradient.copy_(packed.flip(1))
        cut = assert_rows(mean, *views, mean, logvar)
        assert all(a is b for a, b in zip(cut.tensors, (*views, mean, logvar), strict=True))
        output = layout.empty_output(mean)
        assert output.shape == mean.shape
        assert assert_rows(mean, output.zero_(), mean).tensors[1] is mean
        if channels > 1 and torch.Size(space).numel() > 1:
            assert layout.memory_format_of(mean) == form


OTHERS: dict[str, Callable[[], tuple[Tensor, bool]]] = {
    "dense": lambda: (counting(3, 4, 5), False),
    "dense channels_last": lambda: (counting(3, 4, 5, 2, form=torch.channels_last), False),
    "every second sample": lambda: (counting(6, 4, 5)[::2], False),
    "every second sample, channels_last": lambda: (counting(6, 4, 5, 2, form=torch.channels_last)[::2], False),
    "columns of a matrix": lambda: (counting(6, 9)[:, 2:5], False),
    "one column": lambda: (counting(6, 9)[:, 2], False),
    "narrow rows of an image": lambda: (counting(2, 3, 4, 7)[..., 1:4], False),
    "expanded over the batch": lambda: (counting(1, 7).expand(3, 7), False),
    "every second column": lambda: (counting(6, 9)[:, ::2], True),
    "transposed": lambda: (counting(5, 6).t(), True),
    "two gaps": lambda: (counting(4, 6, 9)[::2, :3, :4], True),
    "scalar expanded": lambda: (counting(1, 1).expand(3, 5), True),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_tensors_are_copied_only_if_they_have_to_be(name: str) -> None:
    tensor, copied = OTHERS[name]()
    assert (assert_rows(tensor, tensor).tensors[0] is not tensor) == copied


def test_the_first_tensor_that_is_not_dense_decides_and_others_follow() -> None:
    first, second, dense = counting(4, 6)[:, :3], counting(8, 3)[::2], counting(4, 3)
    cut = assert_rows(first, None, first, second, dense)
    assert (cut.rows, cut.cols, cut.strides) == (4, 3, (0, 6, 6, 3))
    narrow = counting(2, 3, 8)[..., :4]
    cut = assert_rows(narrow, narrow, counting(4, 3, 4)[::2])
    assert cut.tensors[0] is narrow
    assert cut.tensors[1].is_contiguous()


def test_empty_tensors() -> None:
    for shape in ((0, 3), (3, 0), (0,)):
        empty = torch.empty(shape)
        cut = layout.rows(empty, empty, None)
        assert (cut.rows, cut.cols) == (1, 0)
        assert layout.empty_output(empty).shape == shape


@pytest.mark.parametrize("wanted", range(4))
def test_gradients_that_are_not_wanted_are_empty(wanted: int) -> None:
    tensor = torch.empty(2, 4)
    gradients, views = layout.empty_gradients(tensor, tensor, wanted)
    for bit in range(2):
        assert gradients[bit].shape == (tensor.shape if wanted >> bit & 1 else (0,))
        assert (views[bit] is gradients[bit]) == bool(wanted >> bit & 1)
    gradients, views = layout.empty_gradients(tensor, None, wanted)
    assert gradients[0].shape == (tensor.shape if wanted & 1 else (0,))
    assert gradients[1].shape == (0,)


def test_one_compilation_serves_every_batch_size() -> None:
    def outputs(packed: Tensor) -> Tensor:
        return layout.empty_output(layout.split(packed, None)[0]).zero_()

    torch.compiler.reset()
    compiled = torch.compile(outputs, fullgraph=True, dynamic=True, backend="eager")
    packed = [torch.zeros(batch, 4, 3, 7).contiguous(memory_format=torch.channels_last) for batch in (2, 5, 8)]
    compiled(packed[0])
    with torch.compiler.set_stance("fail_on_recompile"):
        for tensor in packed:
            assert compiled(tensor).is_contiguous(memory_format=torch.channels_last)
