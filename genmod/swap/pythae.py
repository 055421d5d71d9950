"""Mixins of pythae's models: their loss functions."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from genmod import ops
from genmod.swap.classes import Swapped


def _squared_error(recon_x: Tensor, x: Tensor) -> Tensor:
    error = ops.mse(recon_x.reshape(x.shape[0], -1), x.reshape(x.shape[0], -1), reduction="batchmean")
    return error.to(recon_x.dtype)


class _Variational(Swapped):
    """Reconstruction and divergence, with a weight on the latter. Averages of the batch at once: the average of the sum
    that pythae takes of each sample is the sum of these."""

    model_config: Any

    def _genmod_loss(self, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, beta: float) -> tuple[Tensor, ...]:
        if self.model_config.reconstruction_loss == "mse":
            reconstruction = 0.5 * _squared_error(recon_x, x)
        else:  # of probabilities, not of logits, which is what PyTorch has and the ops have not
            flat = (recon_x.reshape(x.shape[0], -1), x.reshape(x.shape[0], -1))
            reconstruction = F.binary_cross_entropy(*flat, reduction="sum") / len(x)
        divergence = ops.gaussian_kl(mu, log_var, reduction="batchmean").to(mu.dtype)
        loss = reconstruction + (divergence if beta == 1 else beta * divergence)
        return loss, reconstruction, divergence


class VAE(_Variational):
    """Mixin of `pythae.models.VAE`."""

    def loss_function(self, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor) -> Any:
        """Loss, reconstruction loss and divergence, averaged over the batch."""
        if self._genmod_swap is None or not _covered(recon_x, x, mu, log_var):
            return super().loss_function(recon_x, x, mu, log_var, z)  # type: ignore[misc]
        return self._genmod_loss(recon_x, x, mu, log_var, 1.0)


class BetaVAE(_Variational):
    """Mixin of `pythae.models.BetaVAE`."""

    beta: float

    def loss_function(self, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor) -> Any:
        """Loss, reconstruction loss and divergence, averaged over the batch."""
        if self._genmod_swap is None or not _covered(recon_x, x, mu, log_var):
            return super().loss_function(recon_x, x, mu, log_var, z)  # type: ignore[misc]
        return self._genmod_loss(recon_x, x, mu, log_var, self.beta)


class AE(Swapped):
    """Mixin of `pythae.models.AE`."""

    def loss_function(self, recon_x: Tensor, x: Tensor) -> Any:
        """Squared error, summed per sample and averaged over the batch."""
        if self._genmod_swap is None or not _covered(recon_x, x):
            return super().loss_function(recon_x, x)  # type: ignore[misc]
        return _squared_error(recon_x, x)


def _covered(recon_x: Tensor, x: Tensor, *latent: Tensor) -> bool:
    alike = recon_x.numel() == x.numel() and recon_x.dtype == x.dtype and x.dim() > 0
    return alike and all(t.dim() == 2 and t.is_floating_point() for t in latent)
