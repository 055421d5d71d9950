"""The codes nearest to others."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Metric = Literal["euclidean", "cosine"]
METRICS = ("euclidean", "cosine")


class Neighbours(NamedTuple):
    """`indices` int64 [Q, k] into the codes and `distances` [Q, k], the nearest first."""

    indices: Tensor
    distances: Tensor


@torch.no_grad()
def nearest(
    queries: Tensor,
    codes: Tensor,
    k: int = 1,
    *,
    metric: Metric = "euclidean",
    exclude_self: bool = False,
    chunk: int = 1024,
) -> Neighbours:
    """The k codes nearest to each query.

    Distances are computed for `chunk` queries and `chunk` codes at a time, and only the best k are kept, so memory is
    O(chunk² + Q k), whatever the number of codes. At equal distance the code that comes first wins.

    Args:
        queries: `[Q, D]`.
        codes: `[N, D]`, with the dtype and device of `queries`.
        k: how many, from 1 to N (N - 1 with `exclude_self`).
        metric: "euclidean", or "cosine": one minus the cosine of the angle, which is 1 for a code of zero.
        exclude_self: the queries are the codes, and none is its own neighbour.
        chunk: how many of each at once.

    Raises:
        TypeError: not floating-point tensors of one dtype.
        ValueError: not matrices of one width on one device, a `k` out of range, queries that cannot be the codes, or an
            unknown `metric`.
    """
    _check(queries, codes, k, metric, exclude_self, chunk)
    if metric == "cosine":
        queries, codes = (torch.nn.functional.normalize(t, dim=-1) for t in (queries, codes))
    parts = [
        _nearest_to(part, codes, k, metric, first * chunk if exclude_self else None, chunk)
        for first, part in enumerate(queries.split(chunk))
    ]
    return Neighbours(torch.cat([p.indices for p in parts]), torch.cat([p.distances for p in parts]))


def _nearest_to(
    queries: Tensor, codes: Tensor, k: int, metric: Metric, first_row: int | None, chunk: int
) -> Neighbours:
    """For a few queries, which are the codes from `first_row` on if that is given."""
    indices = queries.new_empty(len(queries), 0, dtype=torch.int64)
    distances = queries.new_empty(len(queries), 0)
    for start in range(0, len(codes), chunk):
        part = codes[start : start + chunk]
        found = _distance(queries, part, metric)
        columns = torch.arange(start, start + len(part), device=codes.device)
        if first_row is not None:
            rows = torch.arange(first_row, first_row + len(queries), device=codes.device)
            found = found.masked_fill(rows[:, None] == columns, torch.inf)
        distances = torch.cat([distances, found], 1)
        indices = torch.cat([indices, columns.expand(len(queries), -1)], 1)
        # A stable sort, where topk would be free in its choice among equals.
        distances, order = distances.sort(dim=1, stable=True)
        distances, indices = distances[:, :k], indices.gather(1, order[:, :k])
    return Neighbours(indices, distances)


def _distance(queries: Tensor, codes: Tensor, metric: Metric) -> Tensor:
    if metric == "cosine":
        return 1 - queries @ codes.T
    # Differences rather than the expanded square, which loses the digits of neighbours that are close.
    return torch.cdist(queries, codes, compute_mode="donot_use_mm_for_euclid_dist")


def _check(queries: Tensor, codes: Tensor, k: int, metric: str, exclude_self: bool, chunk: int) -> None:
    for name, tensor in (("queries", queries), ("codes", codes)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = f"dtype {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name}: got {got}, expected a floating-point tensor")
        if tensor.dim() != 2:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected a matrix with a row for each code")
    if queries.dtype != codes.dtype:
        raise TypeError(f"codes: got dtype {codes.dtype}, expected {queries.dtype}, as queries has")
    if queries.shape[1] != codes.shape[1] or queries.device != codes.device:
        raise ValueError(
            f"codes: got shape {tuple(codes.shape)} on {codes.device}, expected {queries.shape[1]} columns on "
            f"{queries.device}, as queries has"
        )
    if exclude_self and len(queries) != len(codes):
        raise ValueError(f"exclude_self: got {len(queries)} queries and {len(codes)} codes, expected the same ones")
    most = len(codes) - exclude_self
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= most:
        raise ValueError(f"k: got {k!r}, expected an integer from 1 to {most}")
    if metric not in METRICS:
        raise ValueError(f"metric: got {metric!r}, expected one of {', '.join(map(repr, METRICS))}")
    if chunk < 1:
        raise ValueError(f"chunk: got {chunk}, expected at least 1")
