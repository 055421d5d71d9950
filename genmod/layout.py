"""The row model: how every kernel of the `gaussian` family sees memory. Torch only; sizes may be symbolic.

An output is dense. Its *memory order* is that of one of two formats:

* channels_last (rank 4) or channels_last_3d (rank 5), if the event dimensions of the mean view are **not** contiguous
  among themselves, and the view collapses to rows when its dimensions are taken as (batch, spatial..., channel);
* contiguous otherwise.

A tensor *collapses to rows* in a given order of its dimensions if element number i of that order lies at

    (i // cols) * stride + i % cols

for some `cols` and `stride`. Found by walking from the innermost dimension outwards: `cols` grows while each stride
equals the product of the sizes inside it; the first stride that does not is `stride`; from there on every stride must
equal `stride` times the sizes walked since. Dimensions of size 1 are skipped, so they never decide. A dense tensor is
the case of one row. Halves of a packed `[B, 2C, ...]` tensor collapse in either format, which is how they are read and
written without a copy. A scalar expanded to a whole tensor (cols = 1, stride = 0) counts as not collapsing: a copy of
it is cheaper than rows of one element.

Sizes are compared only when a stride does not already decide, so a symbolic batch size costs no guard.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Rows(NamedTuple):
    """One common cut of several tensors of the same shape into rows.

    `rows * cols` elements; tensor k's element i is at `(i // cols) * strides[k] + i % cols` in `tensors[k]`, which is
    the tensor given or a dense copy of it (None stays None, with stride 0). `rows` is 1 when all of them are dense, and
    otherwise `rows_per_sample` of them make one sample.
    """

    rows: int
    cols: int
    strides: tuple[int, ...]
    rows_per_sample: int
    tensors: tuple[Tensor | None, ...]


def split(mean: Tensor, logvar: Tensor | None) -> tuple[Tensor, Tensor]:
    """Views of mean and log-variance; with `logvar` None, `mean` is the packed `[B, 2C, ...]` tensor, mean first."""
    if logvar is not None:
        return mean, logvar
    channels = mean.shape[1] // 2
    return mean.narrow(1, 0, channels), mean.narrow(1, channels, channels)


def memory_format_of(view: Tensor) -> torch.memory_format:
    """Memory format of every output made from a mean `view` (never from the packed tensor): see the module's text."""
    channels_last = _CHANNELS_LAST.get(view.dim())
    if channels_last is None or _event_is_contiguous(view) or _collapse(view, channels_last) is None:
        return torch.contiguous_format
    return channels_last


def empty_output(view: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised dense tensor of the mean `view`'s shape, in the memory format of its outputs."""
    return torch.empty(view.shape, dtype=dtype or view.dtype, device=view.device, memory_format=memory_format_of(view))


def empty_gradients(
    mean: Tensor, logvar: Tensor | None, wanted: int, memory_format: torch.memory_format | None = None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]:
    """Uninitialised gradients of (mean, logvar), and the views of them that a kernel writes.

    Bit 0 of `wanted` asks for the gradient of `mean`, bit 1 for that of `logvar`; one not asked for is an empty (0,)
    tensor, and its view None. If `mean` is packed, its gradient is one dense packed tensor; the views are its halves.
    The memory format is that of the mean's outputs, unless another Gaussian's has to be followed.
    """
    view, _ = split(mean, logvar)
    form = memory_format_of(view) if memory_format is None else memory_format
    if logvar is None and wanted & 1:
        packed = torch.empty(mean.shape, dtype=mean.dtype, device=mean.device, memory_format=form)
        return (packed, mean.new_empty(0)), split(packed, None)
    needed = (logvar is not None and bool(wanted & 1), logvar is not None and bool(wanted & 2))
    first, second = (
        torch.empty(view.shape, dtype=mean.dtype, device=mean.device, memory_format=form) if need else mean.new_empty(0)
        for need in needed
    )
    return (first, second), (first if needed[0] else None, second if needed[1] else None)


def formats_of_pair(first: Tensor | None, second: Tensor) -> tuple[torch.memory_format, torch.memory_format]:
    """Memory formats of what is made from either of two tensors: their own, or of one shape, that of the first."""
    own = memory_format_of(second)
    if first is None:
        return own, own
    form = memory_format_of(first)
    return form, form if first.shape == second.shape else own


def empty_pair(first: Tensor | None, second: Tensor, dtype: torch.dtype, wanted: int) -> tuple[Tensor, Tensor]:
    """Uninitialised tensors like each of two, by the bits of `wanted`; one that is not wanted is an empty tensor."""
    made = (
        torch.empty(t.shape, dtype=dtype, device=t.device, memory_format=form)
        if t is not None and wanted >> i & 1
        else second.new_empty(0, dtype=dtype)
        for i, (t, form) in enumerate(zip((first, second), formats_of_pair(first, second), strict=True))
    )
    one, other = made
    return one, other


def empty_loss_gradients(
    output: Tensor, log_scale: Tensor | None, packed: bool, wanted: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]:
    """The same for a loss of `output`, which is packed or not, and of a `log_scale` of a dtype of its own, if any.

    A log-scale of no dimensions is one number for all elements; its view is None: a sum is not written by element.
    """
    if packed:
        return empty_gradients(output, None, wanted)
    form = memory_format_of(output)
    first = empty_output(output) if wanted & 1 else output.new_empty(0)
    second = output.new_empty(0)
    if log_scale is not None and wanted & 2:
        if log_scale.dim():
            second = torch.empty(output.shape, dtype=log_scale.dtype, device=output.device, memory_format=form)
        else:
            second = torch.empty((), dtype=log_scale.dtype, device=output.device)
    by_element = log_scale is not None and wanted & 2 and log_scale.dim()
    return (first, second), (first if wanted & 1 else None, second if by_element else None)


def rows(like: Tensor, *tensors: Tensor | None) -> Rows:
    """Cut `tensors`, all of the shape of `like` (a mean view, or an output made from one), into common rows.

    The first tensor that is not dense decides `cols`; one that does not fit is copied. So give the tensors to be
    written first: they always collapse and always agree, and are never copied.
    """
    memory_format, numel, batch = memory_format_of(like), like.numel(), like.shape[0]
    if numel == 0:
        return Rows(1, 0, (0,) * len(tensors), 0, tensors)
    cuts = [None if tensor is None else _cut(tensor, memory_format) for tensor in tensors]
    cols = next((cut.cols for cut in cuts if cut is not None and cut.cols != numel), numel)
    strides, fitting = [], []
    for tensor, cut in zip(tensors, cuts):
        if tensor is not None and (cut is None or cut.cols not in (cols, numel)):
            tensor, cut = tensor.contiguous(memory_format=memory_format), None
        # The rows of a dense tensor simply follow one another.
        strides.append(0 if tensor is None else cols if cut is None or cut.cols == numel else cut.stride)
        fitting.append(tensor)
    return Rows(numel // cols, cols, tuple(strides), numel // cols // batch, tuple(fitting))


class _Cut(NamedTuple):
    cols: int
    stride: int


def _cut(tensor: Tensor, memory_format: torch.memory_format) -> _Cut | None:
    if tensor.is_contiguous(memory_format=memory_format):
        return _Cut(tensor.numel(), tensor.numel())  # as the walk would find, but at once
    return _collapse(tensor, memory_format)


def _event_is_contiguous(view: Tensor) -> bool:
    expected = 1
    for dim in range(view.dim() - 1, 0, -1):
        if view.stride(dim) != expected and view.shape[dim] != 1:
            return False
        expected = expected * view.shape[dim]
    return True


def _collapse(tensor: Tensor, memory_format: torch.memory_format) -> _Cut | None:
    """The cut of `tensor` into rows in the dimension order of `memory_format`; None if there is none."""
    order = list(range(tensor.dim()))
    if memory_format is not torch.contiguous_format:
        order = [0, *order[2:], 1]
    cols, stride, expected = 1, None, 1
    for dim in reversed(order):
        size, step = tensor.shape[dim], tensor.stride(dim)
        if step != expected and size != 1:
            if stride is not None or (step == 0 and expected == 1):
                return None
            cols, stride, expected = expected, step, step
        expected = expected * size
    return _Cut(expected, expected) if stride is None else _Cut(cols, stride)
