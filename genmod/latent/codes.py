"""A whole data set through a model's encoder or decoder, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Decode = Callable[[Tensor], Tensor]


@torch.no_grad()
def encode(model: Any, images: Tensor, *, chunk: int = 256) -> Tensor:
    """The codes of all images, by the model's `latents`: `[N, ...]` to `[N, D]` on the device of the images.

    Chunks travel to the model's device and back, so the images may be more than that holds. A model in training mode
    is put into evaluation for the time of the call: a code must not depend on the images beside it.
    """
    with _evaluating(model):
        return _in_chunks(lambda part: model.latents(part.to(_device(model, part))), images, chunk)


@torch.no_grad()
def posteriors(model: Any, images: Tensor, *, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of q(z|x) for all images, each `[N, D]`; for a model whose `encode` has a `latent_dist`."""

    def both(part: Tensor) -> Tensor:
        encoded = model.encode(part.to(_device(model, part)))
        posterior = getattr(encoded, "latent_dist", None)
        if posterior is None:
            raise TypeError(f"model: got {type(model).__name__}, whose encode gives no latent_dist, expected a VAE")
        return torch.cat([posterior.mean.flatten(1), posterior.logvar.flatten(1)], 1)

    with _evaluating(model):
        mean, logvar = _in_chunks(both, images, chunk).chunk(2, 1)
    return mean.contiguous(), logvar.contiguous()


@torch.no_grad()
def decode(model: Any, z: Tensor, *, chunk: int = 256) -> Tensor:
    """Images of codes in an array of any shape, by the model's `decode`: `[..., D]` to `[..., C, H, W]`.

    `model` may also be a function from `[B, D]` to images, which is called as it is.
    """
    call: Decode = model.decode if hasattr(model, "decode") else model
    with _evaluating(model):
        images = _in_chunks(lambda part: call(part.to(_device(model, part))), z.flatten(0, -2), chunk)
    return images.unflatten(0, z.shape[:-1])


def _in_chunks(call: Callable[[Tensor], Tensor], inputs: Tensor, chunk: int) -> Tensor:
    if chunk < 1:
        raise ValueError(f"chunk: got {chunk}, expected at least 1")
    # An empty batch is one chunk, so that it has an output's shape.
    return torch.cat([call(part).to(inputs.device) for part in inputs.split(chunk)])


def _device(model: Any, fallback: Tensor) -> torch.device:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return fallback.device if parameter is None else parameter.device


class _evaluating:
    """Puts a module into evaluation mode, and each of its parts back into its own mode."""

    def __init__(self, model: Any) -> None:
        self.training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []

    def __enter__(self) -> None:
        for module in self.training:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module in self.training:
            module.training = True
