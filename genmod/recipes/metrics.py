"""How good generated images are: FID and KID by torchmetrics, precision and recall, on features learned from the data.

The usual features are those of an Inception network, a download that knows photographs and not digits. Here they are
the 64 activations before the last layer of a small convolutional classifier that is trained on the training images
themselves, from a fixed seed: on their labels, or, where there are none, on which of four ways an image is turned. So
the numbers compare models of one data set with each other; they are not those of papers.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genmod.models.networks import ConvEncoder
from genmod.recipes import RecipeError, need
from genmod.recipes.presets import stages_of

FEATURES = 64
STEPS, BATCH, RATE = 300, 64, 2e-3


class FeatureExtractor(nn.Module):
    """A classifier whose `forward` is its last hidden layer: images `[N, C, H, W]` in [0, 1] to `[N, 64]`."""

    num_features = FEATURES  # where torchmetrics looks

    def __init__(self, image_size: int, channels: int, classes: int) -> None:
        super().__init__()
        self.encoder = ConvEncoder(image_size, channels, 16, stages_of(image_size))
        self.hidden = nn.Linear(self.encoder.num_features, FEATURES)
        self.classes = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        """The features."""
        return F.silu(self.hidden(self.encoder(images)))


def feature_extractor(images: Tensor, labels: Tensor | None, *, seed: int = 0, steps: int = STEPS) -> FeatureExtractor:
    """Train a feature extractor; the same arguments give the same one.

    Args:
        images: `[N, C, H, W]` in [0, 1], square.
        labels: int64 `[N]`, or None for four-way rotation.
        seed: of weights and batches.
        steps: of 64 images, with Adam.
    """
    classes = 4 if labels is None else int(labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FeatureExtractor(images.shape[-1], images.shape[1], classes)
        optimizer = torch.optim.Adam(model.parameters(), RATE)
        for _ in range(steps):
            picked = torch.randint(len(images), (BATCH,))
            batch = images[picked]
            if labels is None:
                target = torch.randint(4, (BATCH,))
                batch = torch.stack([image.rot90(int(turns), (1, 2)) for image, turns in zip(batch, target)])
            else:
                target = labels[picked]
            optimizer.zero_grad()
            F.cross_entropy(model.classes(model(batch)), target).backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


class Quality(NamedTuple):
    """Distances of fake from real images (0 is best), and the shares of each that look like the other (1 is best)."""

    fid: float
    kid: float
    precision: float
    recall: float


def quality(real: Tensor, fake: Tensor, extractor: nn.Module, *, subset: int = 100, seed: int = 0) -> Quality:
    """FID (Heusel et al. 2017), KID (Binkowski et al. 2018), and improved precision and recall.

    Args:
        real, fake: images `[N, C, H, W]` and `[M, C, H, W]` in [0, 1].
        extractor: from images to features `[N, D]`, with an attribute `num_features`.
        subset: images in each of the 50 subsets over which KID is averaged; at most the smaller of N and M.
        seed: of the subsets.
    """
    fid = need("torchmetrics.image.fid").FrechetInceptionDistance(feature=extractor)
    size = min(subset, len(real), len(fake))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps all features in memory: they are few
        kid = need("torchmetrics.image.kid").KernelInceptionDistance(feature=extractor, subsets=50, subset_size=size)
    features = {}
    for name, images in (("real", real), ("fake", fake)):
        if not bool(images.isfinite().all()):
            raise RecipeError(f"{name} images: got values that are not finite")
        for batch in images.split(256):
            fid.update(batch, real=name == "real")
            kid.update(batch, real=name == "real")
        features[name] = torch.cat([extractor(batch) for batch in images.split(256)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kernel: Any = kid.compute()[0]
    return Quality(float(fid.compute()), float(kernel), *precision_recall(features["real"], features["fake"]))


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., NeurIPS 2019, arXiv:1904.06991).

    The real manifold is the union of balls around the real features, each as large as the distance to its k-th nearest
    other one. Precision is the share of fake features inside of it; recall exchanges the roles.

    Args:
        real, fake: features `[N, D]` and `[M, D]`, more than `neighbours` of each.
        neighbours: k, 3 in the paper.

    Raises:
        ValueError: matrices of other shapes, or too few of them.
    """
    for name, features in (("real", real), ("fake", fake)):
        if features.dim() != 2 or len(features) <= neighbours or features.shape[1] != real.shape[1]:
            raise ValueError(
                f"{name}: got shape {tuple(features.shape)}, expected [N, {real.shape[-1]}] with N > {neighbours}"
            )
    return _covered(real, fake, neighbours), _covered(fake, real, neighbours)


def _covered(manifold: Tensor, points: Tensor, neighbours: int) -> float:
    # The nearest of all is the feature itself, at distance 0.
    radii = _distances(manifold, manifold).kthvalue(neighbours + 1, dim=1).values
    inside = (_distances(points, manifold) <= radii).any(1)
    return float(inside.float().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Without the shortcut by a matrix product, which rounds small distances away.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
