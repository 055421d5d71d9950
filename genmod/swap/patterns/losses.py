"""Losses of PyTorch and of pythae that are modules."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from genmod.swap.pattern import ModulePattern

_BOUND = "error at most twice stock's own, plus 1e-6 of the loss"
_PYTHAE = "pythae.models"


def _why_not_torch(module: nn.Module, before: Sequence[nn.Module | None]) -> str:
    if getattr(module, "weight", None) is not None or getattr(module, "pos_weight", None) is not None:
        return "weights per class or per batch element"
    reduction = getattr(module, "reduction", None)
    return "" if reduction in ("mean", "sum") else f"reduction {reduction!r}: nothing to save without a sum"


def _loss(name: str, original: str, mixin: str) -> ModulePattern:
    return ModulePattern(
        name=name,
        original=f"torch.nn.modules.loss:{original}",
        mixin=f"genmod.swap.losses:{mixin}",
        became="loss and reduction in one pass",
        exactness="reassociated",
        bound=_BOUND,
        why_not=_why_not_torch,
    )


def _pythae(name: str) -> ModulePattern:
    folder = {"VAE": "vae.vae_model", "BetaVAE": "beta_vae.beta_vae_model", "AE": "ae.ae_model"}[name]
    return ModulePattern(
        name=f"pythae_{name.lower()}_loss",
        original=f"{_PYTHAE}.{folder}:{name}",
        mixin=f"genmod.swap.pythae:{name}",
        became="reconstruction loss and divergence in one pass each",
        exactness="reassociated",
        bound=_BOUND,
    )


MODULES = (
    _loss("mse_loss", "MSELoss", "MSELoss"),
    _loss("l1_loss", "L1Loss", "L1Loss"),
    _loss("bce_with_logits_loss", "BCEWithLogitsLoss", "BCEWithLogitsLoss"),
    _pythae("VAE"),
    _pythae("BetaVAE"),
    _pythae("AE"),
)
