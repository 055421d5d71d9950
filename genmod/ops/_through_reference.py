"""The gradient of a backward op: autograd through its reference, in one go or a few samples at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Elements of the samples that are differentiated together. Of what a reference makes of more, nothing stays in the
#: caches, and the allocator takes memory from the system for each operator, and gives it back.
_PIECE = 1 << 19


class PerSample(NamedTuple):
    """Which inputs and outputs of an op that treats each sample by itself have the batch as their first dimension, by
    position; the others, parameters and their gradients, belong to all samples. The first input given is the largest.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def gradients(
    reference: Callable[..., Any],
    inputs: Sequence[Any],
    wanted: Sequence[bool],
    incoming: Sequence[Tensor | None],
    further: bool,
) -> list[Tensor | None]:
    """The gradient of each input that wants one; differentiable in turn if `further`."""
    results: list[Tensor | None] = [None] * len(inputs)
    outputs = reference(*inputs)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    known = [(o, g) for o, g in zip(outputs, incoming, strict=True) if g is not None and o.requires_grad]
    places = [i for i, value in enumerate(inputs) if isinstance(value, Tensor) and wanted[i]]
    if known and places:
        outputs, arriving = zip(*known, strict=True)
        leaves = [inputs[i] for i in places]
        found = torch.autograd.grad(outputs, leaves, arriving, create_graph=further, allow_unused=True)
        for i, grad in zip(places, found, strict=True):
            results[i] = grad
    return results


def pieces_of(inputs: Sequence[Any], per_sample: PerSample) -> list[slice]:
    """The samples of a batch in pieces that fit a CPU's cache; a GPU, which pays for each launch, takes all at once."""
    largest = inputs[per_sample.inputs[0]]
    batch = largest.shape[0]
    if not largest.is_cpu:
        return [slice(0, batch)]
    step = max(1, _PIECE // max(1, largest.numel() // max(1, batch)))
    return [slice(first, min(first + step, batch)) for first in range(0, batch, step)]


def gradients_by_sample(
    reference: Callable[..., Any],
    inputs: Sequence[Any],
    wanted: Sequence[bool],
    incoming: Sequence[Tensor | None],
    per_sample: PerSample,
    pieces: list[slice],
) -> list[Tensor | None]:
    """The same, piece by piece, of gradients that are not differentiated again."""
    found: list[list[Tensor | None]] = []
    for piece in pieces:
        given = [_part(value, piece if i in per_sample.inputs else None) for i, value in enumerate(inputs)]
        arriving = [_cut(g, piece if o in per_sample.outputs else None) for o, g in enumerate(incoming)]
        found.append(gradients(reference, given, wanted, arriving, False))
    results: list[Tensor | None] = []
    for i, parts in enumerate(zip(*found, strict=True)):
        there = [part for part in parts if part is not None]
        if not there:
            results.append(None)
        else:
            results.append(torch.cat(there) if i in per_sample.inputs else torch.stack(there).sum(0))
    return results


def _cut(t: Tensor | None, piece: slice | None) -> Tensor | None:
    return t if t is None or piece is None else t[piece]


def _part(value: Any, piece: slice | None) -> Any:
    """An input's samples, as a leaf of a graph of its own."""
    if not isinstance(value, Tensor):
        return value
    part = value.detach()
    return (part if piece is None else part[piece]).requires_grad_(value.requires_grad)
