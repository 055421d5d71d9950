"""diffusers' posterior, by genmod's ops. Imports diffusers, so it is imported where a model of diffusers is at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from genmod import ops


@apply_forward_hook
def encode(model: Any, x: Tensor, return_dict: bool) -> Any:
    """What `AutoencoderKL.encode` does, with the posterior below."""
    sliced = model.use_slicing and x.shape[0] > 1
    moments = torch.cat([model._encode(part) for part in x.split(1)]) if sliced else model._encode(x)
    posterior = Posterior(moments)
    return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)


class _Lazily:
    """`functools.cached_property`, but for the lock that Python 3.10 and 3.11 put around it: torch.compile cannot enter
    a lock, and would break the graph."""

    def __init__(self, compute: Callable[[Any], Tensor]) -> None:
        self.compute, self.name, self.__doc__ = compute, compute.__name__, compute.__doc__

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        value = self.compute(instance)
        setattr(instance, self.name, value)  # found in front of this descriptor from now on
        return value


class Posterior(DiagonalGaussianDistribution):
    """`DiagonalGaussianDistribution` with its values, that computes none of them before it is asked.

    Samples use torch's noise, so that seeds and generators give what they gave.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        self.parameters, self.deterministic = parameters, deterministic

    @_Lazily
    def mean(self) -> Tensor:  # type: ignore[override]
        """Mean."""
        return self.parameters.chunk(2, dim=1)[0]

    @_Lazily
    def logvar(self) -> Tensor:  # type: ignore[override]
        """Log-variance, clamped to [-30, 20]."""
        return self.parameters.chunk(2, dim=1)[1].clamp(-30.0, 20.0)

    @_Lazily
    def std(self) -> Tensor:  # type: ignore[override]
        """Standard deviation; zero if deterministic."""
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(0.5 * self.logvar)

    @_Lazily
    def var(self) -> Tensor:  # type: ignore[override]
        """Variance; zero if deterministic."""
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A sample, differentiable in the parameters."""
        if self.deterministic:
            return super().sample(generator)
        shape = (self.parameters.shape[0], self.parameters.shape[1] // 2, *self.parameters.shape[2:])
        device, dtype = self.parameters.device, self.parameters.dtype
        noise = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        return ops.reparameterize(self.parameters, noise=noise, clamp="hard")

    def kl(self, other: Any = None) -> Tensor:
        """Divergence from the standard normal or from `other`, one number per sample."""
        if self.deterministic or other is not None or self.parameters.dim() != 4:
            return super().kl(other)
        return ops.gaussian_kl(self.parameters, reduction="batch", clamp="hard").to(self.parameters.dtype)
