"""Codes as points in the plane."""

from __future__ import annotations

import importlib.util
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genmod.latent._need import need
from genmod.latent.components import principal_components

Method = Literal["pca", "tsne", "umap"]


def methods() -> tuple[Method, ...]:
    """The methods of :func:`project` whose libraries are installed."""
    found: list[Method] = []
    if importlib.util.find_spec("sklearn"):
        found += ["pca", "tsne"]
    if importlib.util.find_spec("umap"):
        found += ["umap"]
    return tuple(found)


def project(codes: Tensor, *, method: Method = "pca", seed: int = 0, perplexity: float = 30.0) -> Tensor:
    """A point in the plane for each code: `[N, D]` to float32 `[N, 2]` on the CPU.

    "pca" keeps the two directions of most variance, and distances in it are distances of codes seen from one side.
    "tsne" and "umap" keep neighbours together; between their clusters, distances and sizes mean little.

    Args:
        codes: N >= 3 codes; of one dimension they are drawn on a line.
        method: "pca"; "tsne" (van der Maaten and Hinton, JMLR 2008), by scikit-learn; or "umap" (McInnes et al. 2018),
            by umap-learn.
        seed: of "tsne" and "umap".
        perplexity: of "tsne", and the number of neighbours of "umap"; made smaller where there are few codes.

    Raises:
        ValueError: not a matrix of at least three codes, codes that are not finite, or an unknown `method`.
        ModuleNotFoundError: the library is not installed.
    """
    if codes.dim() != 2 or len(codes) < 3 or not codes.shape[1]:
        raise ValueError(f"codes: got shape {tuple(codes.shape)}, expected [N, D] with at least three codes")
    if not bool(codes.isfinite().all()):
        raise ValueError("codes: got values that are not finite")
    if method == "pca":
        points = principal_components(codes, min(2, codes.shape[1])).project(codes).detach().float().cpu()
        return torch.nn.functional.pad(points, (0, 2 - points.shape[1]))
    z = codes.detach().float().cpu().numpy()
    neighbours = min(perplexity, (len(z) - 1) / 3)
    if method == "tsne":
        # The first two principal components as a start: the outline of the map is then that of the codes.
        start = "pca" if z.shape[1] > 1 else "random"
        tsne = need("sklearn.manifold").TSNE(2, perplexity=neighbours, init=start, random_state=seed)
        return torch.from_numpy(np.asarray(tsne.fit_transform(z), np.float32))
    if method == "umap":
        # Its usual start needs more codes than eigenvectors; a seed allows but one job, which it would warn of.
        options = {"init": "spectral" if len(z) > 4 else "random", "n_jobs": 1}
        umap = need("umap", "umap-learn").UMAP(n_neighbors=max(2, int(neighbours)), random_state=seed, **options)
        return torch.from_numpy(np.asarray(umap.fit_transform(z), np.float32))
    raise ValueError(f"method: got {method!r}, expected one of 'pca', 'tsne', 'umap'")
