"""Codes and factors, checked: what every metric takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor


def codes_and_factors(codes: Any, factors: Any, least_codes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Codes as float64 [N, D], and factors as int64 [N, K] with the values of each numbered from 0."""
    z = matrix("codes", codes).astype(np.float64)
    v = matrix("factors", factors)
    if len(v) != len(z):
        raise ValueError(f"factors: got {len(v)} rows, expected {len(z)}, as codes has")
    if z.shape[1] < least_codes:
        raise ValueError(f"codes: got {z.shape[1]} dimensions, expected at least {least_codes}")
    if not np.isfinite(z).all():
        raise ValueError("codes: got values that are not finite")
    return z, numbered(v)


def numbered(factors: np.ndarray) -> np.ndarray:
    """Each column's values replaced by their rank among the column's distinct values."""
    if not np.issubdtype(factors.dtype, np.integer) and factors.dtype != bool:
        raise TypeError(f"factors: got dtype {factors.dtype}, expected integers, one for each value of a factor")
    columns = [np.unique(column, return_inverse=True)[1] for column in factors.T]
    for k, column in enumerate(columns):
        if column.max() == 0:
            raise ValueError(f"factors: column {k} has one value only, expected at least two to tell apart")
    return np.stack(columns, 1).astype(np.int64)


def matrix(name: str, value: Any) -> np.ndarray:
    """A NumPy matrix with at least two rows and one column, from an array or a tensor on any device."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: got {type(value).__name__}, expected an array or a tensor")
    if value.ndim != 2 or len(value) < 2 or not value.shape[1]:
        raise ValueError(f"{name}: got shape {value.shape}, expected a matrix with a row for each sample, at least two")
    return value


def posterior(mean: Any, logvar: Any) -> tuple[Tensor, Tensor]:
    """The Gaussians q(z|x) of a data set, as float64 [N, D]."""
    tensors = [torch.from_numpy(matrix(name, t)).double() for name, t in (("mean", mean), ("logvar", logvar))]
    if tensors[0].shape != tensors[1].shape:
        raise ValueError(
            f"logvar: got shape {tuple(tensors[1].shape)}, expected {tuple(tensors[0].shape)}, as mean has"
        )
    return tensors[0], tensors[1]


def top_two(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest and the second largest of each column of [D, K], D >= 2."""
    ordered = np.sort(scores, axis=0)
    return ordered[-1], ordered[-2]


def split(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random indices for fitting and, the given share of them, for scoring; at least one of each."""
    if not 0 < share < 1:
        raise ValueError(f"test_share: got {share}, expected a number between 0 and 1")
    order = np.random.default_rng(seed).permutation(count)
    held = min(max(1, round(count * share)), count - 1)
    return order[held:], order[:held]
