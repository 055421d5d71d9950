"""Ways from one code to another."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Path = Literal["lerp", "slerp"]
PATHS = ("lerp", "slerp")


def lerp(start: Tensor, end: Tensor, t: Tensor | float) -> Tensor:
    """The straight line, (1 - t) start + t end; exact at both ends. Shapes broadcast; t is any number."""
    t = torch.as_tensor(t, dtype=start.dtype, device=start.device)
    return torch.where(t < 0.5, start + t * (end - start), end - (1 - t) * (end - start))


def slerp(start: Tensor, end: Tensor, t: Tensor | float) -> Tensor:
    r"""The great circle between the directions of two codes, with the length going in a straight line.

    .. math::
        \left((1 - t) |a| + t |b|\right)
            \frac{\sin((1 - t)\omega)\,\hat a + \sin(t\omega)\,\hat b}{\sin\omega}, \qquad
            \cos\omega = \hat a \cdot \hat b

    A standard normal in many dimensions lies close to a sphere, which the straight line leaves: half-way between two
    samples it has the length of hardly any sample. For codes of equal length this is White's formula.

    Args:
        start, end: `[..., D]` of one floating dtype and device; leading dimensions broadcast.
        t: a number, or a tensor that broadcasts against `[..., 1]`.

    Where the directions are (nearly) the same the way is the straight line, and it is also if one of the codes is zero,
    which has no direction. Between opposite directions every great circle is as short as the others; the one taken
    then leads over the axis on which the start's direction is smallest, and is the same at every call.

    Computed in float32 at least. Source: White, *Sampling generative networks*, 2016, arXiv:1609.04468.
    """
    _check(start, end)
    dtype = start.dtype
    a, b = (x.to(torch.promote_types(dtype, torch.float32)) for x in torch.broadcast_tensors(start, end))
    t = torch.as_tensor(t, dtype=a.dtype, device=a.device)
    # Two steps to the length: squares of very small or very large codes would underflow or overflow.
    peak_a, peak_b = (x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny) for x in (a, b))
    length_a, length_b = ((x / p).norm(dim=-1, keepdim=True) for x, p in ((a, peak_a), (b, peak_b)))
    unit_a, unit_b = a / peak_a / length_a.clamp_min(0.5), b / peak_b / length_b.clamp_min(0.5)
    # The angle from a difference and a sum: exact near 0 and near pi, where acos of the product has no digits.
    chord, coverage = (unit_a - unit_b).norm(dim=-1, keepdim=True), (unit_a + unit_b).norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(chord, coverage)
    # What is left of the end's direction without the start's: where the circle goes first.
    across = unit_b - (unit_a * unit_b).sum(-1, keepdim=True) * unit_a
    small = 32 * torch.finfo(a.dtype).eps
    opposite = coverage < small
    across = torch.where(opposite, _perpendicular(unit_a), across)
    across = across / across.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny)
    direction = torch.cos(t * angle) * unit_a + torch.sin(t * angle) * across
    curved = lerp(length_a * peak_a, length_b * peak_b, t) * direction
    straight = (chord < small) | (a == 0).all(-1, keepdim=True) | (b == 0).all(-1, keepdim=True)
    way = torch.where(straight, lerp(a, b, t), curved)
    # The ends are the codes themselves, bit by bit.
    way = torch.where(t == 0, a, torch.where(t == 1, b, way))
    return way.to(dtype)


def interpolate(start: Tensor, end: Tensor, steps: int, *, path: Path = "slerp") -> Tensor:
    """Codes on the way from `start` to `end`, both included: `[..., D]` twice to `[..., steps, D]`.

    Args:
        start, end: of one floating dtype and device; leading dimensions broadcast.
        steps: how many, at least 2.
        path: "slerp" or "lerp".

    Raises:
        TypeError: not floating-point tensors of one dtype.
        ValueError: another number of dimensions D, another device, fewer than two steps, or an unknown `path`.
    """
    _check(start, end)
    if path not in PATHS:
        raise ValueError(f"path: got {path!r}, expected one of {', '.join(map(repr, PATHS))}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ValueError(f"steps: got {steps!r}, expected an integer of at least 2")
    t = torch.linspace(0, 1, steps, dtype=torch.promote_types(start.dtype, torch.float32), device=start.device)
    way = slerp if path == "slerp" else lerp
    return way(start[..., None, :], end[..., None, :], t[:, None])


def _perpendicular(unit: Tensor) -> Tensor:
    """A direction at right angles to each unit vector: the axis it is farthest from, without the vector's own part."""
    if unit.shape[-1] < 2:
        return torch.zeros_like(unit)  # a line has no other direction: the way leads through zero
    axis = torch.nn.functional.one_hot(unit.abs().argmin(-1), unit.shape[-1]).to(unit)
    return axis - (axis * unit).sum(-1, keepdim=True) * unit


def _check(start: Tensor, end: Tensor) -> None:
    for name, tensor in (("start", start), ("end", end)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = f"dtype {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name}: got {got}, expected a floating-point tensor")
        if tensor.dim() == 0:
            raise ValueError(f"{name}: got a 0-d tensor, expected [..., D]")
    if start.dtype != end.dtype:
        raise TypeError(f"end: got dtype {end.dtype}, expected {start.dtype}, as start has")
    if start.shape[-1] != end.shape[-1] or start.device != end.device:
        raise ValueError(
            f"end: got shape {tuple(end.shape)} on {end.device}, expected {start.shape[-1]} dimensions on "
            f"{start.device}, as start has"
        )
