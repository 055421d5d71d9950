"""What a trained model learned, in numbers and pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genmod.latent import by_information, decode, posteriors, traverse
from genmod.latent.codes import encode
from genmod.models import GAN, VAE, Model
from genmod.recipes import metrics, pictures
from genmod.recipes.data import ImageSet

TRAVERSED = 8  # latents drawn in a traversal
COMPARED = 1000  # images on each side of FID and the like: no more than there are


@torch.no_grad()
def reconstruction(model: Model, images: ImageSet) -> dict[str, float]:
    """Mean squared error per pixel of held-out images, beside that of answering with the mean training image.

    VAEs also get the negative ELBO and its divergence, in nats per held-out image, with one latent sample each.
    """
    device = next(model.parameters()).device
    test = images.test.to(device)
    error, count = 0.0, 0
    for batch in test.split(256):
        error += float((model.reconstruct(batch) - batch).square().sum())
        count += batch.numel()
    found = {
        "mse": error / count,
        "mean_image_mse": float((images.train.mean(0) - images.test).square().mean()),
        "psnr": 10 * math.log10(count / max(error, 1e-12)),
    }
    if isinstance(model, VAE):
        generator = torch.Generator().manual_seed(0)
        terms = []
        for batch in test.split(256):
            noise = torch.randn(len(batch), model.latent_dim, generator=generator).to(device)
            losses = model.elbo(batch, noise=noise)
            terms.append(torch.stack([losses.loss, losses.parts["kl"]]) * len(batch))
        nelbo, kl = (torch.stack(terms).sum(0) / len(test)).tolist()
        found |= {"nelbo": nelbo, "kl": kl}
    return found


def sampling(model: Model, images: ImageSet, seed: int) -> dict[str, float]:
    """FID, KID, precision and recall of samples; and the FID and KID that other real images get, the least to hope for.

    Real are training images, half of them at most, so that the other half can be compared with them.
    """
    extractor = metrics.feature_extractor(images.train, images.train_labels)
    count = min(COMPARED, len(images.train) // 2)
    real, other = images.train[:count], images.train[count : 2 * count]
    generator = torch.Generator().manual_seed(seed)
    fake = torch.cat([model.sample(min(256, count - start), generator).cpu() for start in range(0, count, 256)])
    found = metrics.quality(real, fake.float(), extractor)._asdict()
    floor = metrics.quality(real, other, extractor)
    return {**found, "real_fid": floor.fid, "real_kid": floor.kid, "images_compared": count}


def evaluate(model: Model, images: ImageSet, seed: int = 0) -> dict[str, float]:
    """All numbers that apply to a model; `device` and mode are the model's own."""
    found = {} if isinstance(model, GAN) else reconstruction(model, images)
    return found | sampling(model, images, seed)


@torch.no_grad()
def draw(model: Model, images: ImageSet, seed: int, folder: Path) -> None:
    """The pictures that apply to a model, as PNG files in a folder."""
    device = next(model.parameters()).device
    pictures.save_samples(folder / "samples.png", model.sample(64, torch.Generator().manual_seed(seed)))
    if isinstance(model, GAN):
        return
    shown = images.test[:16].to(device)
    pictures.save_reconstructions(folder / "reconstructions.png", shown, model.reconstruct(shown))
    grid, dims, amounts, values = traversal(model, images.test[:512])
    pictures.save_traversal(folder / "traversal.png", grid, dims, amounts, values, unit=unit_of(model))


def unit_of(model: Model) -> str:
    """What `traversal` orders the latents of a model by."""
    return "nats" if isinstance(model, VAE) else "deviation"


@torch.no_grad()
def traversal(model: Model, images: Tensor) -> tuple[Tensor, list[int], list[float], list[float]]:
    """Images with one latent moved at a time, from the mean code of `images`.

    Returns:
        Images `[rows, columns, C, H, W]`; which latent each row moves, those first that carry most; how much each
        carries: a VAE's divergence in nats, otherwise the standard deviation of the code; and by how many standard
        deviations of the code (a VAE's: of the prior) each column moves it.
    """
    values = torch.linspace(-3, 3, 13)
    if isinstance(model, VAE):
        mean, logvar = posteriors(model, images)
        dims, amounts = by_information(mean, logvar)
        z, scale = torch.zeros(model.latent_dim), torch.ones(model.latent_dim)
    else:
        codes = encode(model, images).cpu()
        scale = codes.std(0)
        amounts, dims = scale.sort(descending=True)
        z = codes.mean(0)
    chosen = dims[:TRAVERSED].tolist()
    rows = [traverse(z, [dim], (z[dim] + scale[dim].cpu() * values))[0] for dim in chosen]
    return decode(model, torch.stack(rows)), chosen, amounts[:TRAVERSED].tolist(), values.tolist()


def numbers(found: dict[str, Any]) -> str:
    """One line of names and values."""
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items())
