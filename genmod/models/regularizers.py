"""What the objectives of a VAE add to its reconstruction: modules from the posterior to weighted, named terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from genmod.nn import DIP, MMD, LinearSchedule, TotalCorrelation

if TYPE_CHECKING:
    from genmod.models.vae import VAEConfig


class Posterior(NamedTuple):
    """A batch of latents, where they come from, and the divergence of that."""

    z: Tensor  # [B, D]
    mean: Tensor  # [B, D]
    logvar: Tensor  # [B, D]
    kl: Tensor  # 0-d: summed over latents, averaged over the batch
    prior: Tensor | None  # [B, D] from N(0, I), where the objective draws them


Terms = dict[str, Tensor]


class Divergence(nn.Module):
    r""":math:`\beta(t)\,\mathrm{KL}`, beta constant or rising from zero over `warmup` steps."""

    def __init__(self, beta: float, warmup: int = 0) -> None:
        super().__init__()
        self.schedule = LinearSchedule(0.0, beta, warmup) if warmup else None
        self.beta = beta

    def forward(self, posterior: Posterior, step: int) -> Terms:
        """The divergence, weighted."""
        beta = self.beta if self.schedule is None else self.schedule(step)
        return {"kl": beta * posterior.kl}


class Capacity(nn.Module):
    r""":math:`\gamma\,|\mathrm{KL} - C(t)|`, the capacity C rising from zero over `warmup` steps."""

    def __init__(self, gamma: float, capacity: float, warmup: int) -> None:
        super().__init__()
        self.gamma, self.schedule = gamma, LinearSchedule(0.0, capacity, warmup)

    def forward(self, posterior: Posterior, step: int) -> Terms:
        """The distance from the capacity, weighted."""
        return {"capacity": self.gamma * (posterior.kl - self.schedule(step)).abs()}


class Decomposition(nn.Module):
    """The divergence in three: mutual information, beta times total correlation, and dimension-wise divergence."""

    def __init__(self, beta: float, dataset_size: int) -> None:
        super().__init__()
        self.beta, self.terms = beta, TotalCorrelation(dataset_size)

    def forward(self, posterior: Posterior, step: int) -> Terms:
        """The three terms, weighted."""
        information, correlation, dimension_kl = self.terms(posterior.z, posterior.mean, posterior.logvar)
        return {
            "mutual_information": information,
            "total_correlation": self.beta * correlation,
            "dimension_kl": dimension_kl,
        }


class Covariance(nn.Module):
    """The divergence, and DIP-VAE's distance of the latents' covariance from the identity."""

    def __init__(self, dip: DIP) -> None:
        super().__init__()
        self.dip = dip

    def forward(self, posterior: Posterior, step: int) -> Terms:
        """Both, the second with its own weights."""
        return {"kl": posterior.kl, "dip": self.dip(posterior.mean, posterior.logvar)}


class Discrepancy(nn.Module):
    r""":math:`(1 - \alpha)\,\mathrm{KL} + (\alpha + \lambda - 1)\,\mathrm{MMD}` of aggregate posterior and prior."""

    def __init__(self, alpha: float, weight: float) -> None:
        super().__init__()
        self.alpha, self.weight, self.mmd = alpha, weight, MMD()

    def forward(self, posterior: Posterior, step: int) -> Terms:
        """Both; the divergence only if it counts."""
        assert posterior.prior is not None
        terms = {"mmd": (self.alpha + self.weight - 1) * self.mmd(posterior.z, posterior.prior.to(posterior.z.dtype))}
        return terms if self.alpha == 1 else {"kl": (1 - self.alpha) * posterior.kl, **terms}


def regularizer(config: VAEConfig) -> nn.Module | None:
    """The module of an objective; None for "iwae", whose bound is no sum of a reconstruction and something else."""
    made: dict[str, Callable[[], nn.Module]] = {
        "vae": lambda: Divergence(config.beta),
        "annealed": lambda: Divergence(config.beta, config.warmup),
        "capacity": lambda: Capacity(config.gamma, config.capacity, config.warmup),
        "beta_tc": lambda: Decomposition(config.beta, config.dataset_size or 0),
        "dip_i": lambda: Covariance(DIP(kind="i", lambda_od=config.lambda_od, lambda_d=config.lambda_d)),
        "dip_ii": lambda: Covariance(DIP(kind="ii", lambda_od=config.lambda_od, lambda_d=config.lambda_d)),
        "wae": lambda: Discrepancy(config.alpha, config.mmd_weight),
    }
    return made[config.objective]() if config.objective in made else None
