"""Evidence lower bounds: what a VAE minimises, made from a likelihood and the encoder's Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from genmod import ops
from genmod.nn.gaussian import DiagonalGaussian
from genmod.ops.gaussian import Clamp

Likelihood = Callable[[Tensor, Tensor], Tensor]
Schedule = Callable[[Tensor], Tensor]


class ELBOTerms(NamedTuple):
    """What :class:`ELBO` returns: `loss` is `reconstruction + penalty`. Averages over the batch, in nats."""

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor  # the divergence itself
    penalty: Tensor  # what is added for it
    beta: Tensor


class ELBO(nn.Module):
    r"""The negative evidence lower bound, :math:`-\ln p(x|z) + \beta\,\mathrm{KL}`, and its usual variants.

    .. math::
        \text{penalty} = \beta\,\mathrm{KL}, \qquad
        \beta \sum_j \max\left(\lambda, \overline{\mathrm{KL}_j}\right), \qquad
        \beta \left|\mathrm{KL} - C\right|

    plain or :math:`\beta`-VAE; with free bits :math:`\lambda` per latent dimension, of its divergence averaged over the
    batch; with a capacity C, where `beta` is that paper's :math:`\gamma`.

    Args:
        likelihood: any callable or module from (decoder's output, target) to the negative log-likelihood of each
            sample, `[B]`, such as :class:`genmod.nn.LogisticMixture`.
        beta: a number, or a schedule: a callable of the number of steps, as those of `genmod.nn.schedules`.
        free_bits: :math:`\lambda`, in nats.
        capacity: C in nats, a number or a schedule.
        clamp: of a log-variance given as a tensor; see :func:`genmod.ops.gaussian_kl`.

    Call :meth:`step` after each step of the optimiser where there is a schedule. The count is a buffer, `steps`, and
    is saved with the model.

    Shape:
        `forward(output, target, posterior)` with the encoder's packed output `[B, 2C, ...]` or a
        :class:`genmod.nn.DiagonalGaussian`; `forward(output, target, mean, logvar)`; or, with the divergence at hand,
        `[B]` or its mean, `forward(output, target, kl=kl)`, as :class:`genmod.nn.GaussianSampler` gives it.

    Sources: Higgins et al., ICLR 2017 (beta); Kingma et al., NeurIPS 2016 (free bits); Burgess et al. 2018 (capacity).
    """

    steps: Tensor

    def __init__(
        self,
        likelihood: Likelihood,
        beta: float | Schedule = 1.0,
        free_bits: float = 0.0,
        capacity: float | Schedule | None = None,
        *,
        clamp: Clamp = "none",
    ) -> None:
        super().__init__()
        if not callable(likelihood):
            raise TypeError(f"likelihood: got {type(likelihood).__name__}, expected a callable of (output, target)")
        if not callable(beta) and not beta >= 0:
            raise ValueError(f"beta: got {beta}, expected a number >= 0 or a schedule")
        if not free_bits >= 0:
            raise ValueError(f"free_bits: got {free_bits}, expected a number >= 0")
        if capacity is not None and free_bits:
            raise ValueError("capacity: got one together with free_bits, expected one of the two")
        if capacity is not None and not callable(capacity) and not capacity >= 0:
            raise ValueError(f"capacity: got {capacity}, expected a number >= 0 or a schedule")
        self.likelihood, self.beta, self.free_bits = likelihood, beta, free_bits
        self.capacity, self.clamp = capacity, clamp
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def step(self) -> None:
        """One step further on the schedules."""
        self.steps.add_(1)

    def forward(
        self,
        output: Tensor,
        target: Tensor,
        posterior: Tensor | DiagonalGaussian | None = None,
        logvar: Tensor | None = None,
        *,
        kl: Tensor | None = None,
    ) -> ELBOTerms:
        """The loss and its parts; see the class."""
        if (posterior is None) == (kl is None):
            raise ValueError("posterior: expected either the encoder's Gaussian or its divergence, kl")
        if kl is not None and self.free_bits:
            raise ValueError("kl: got one with free_bits, expected the Gaussian, or free bits where kl is computed")
        reconstruction = _per_sample(self.likelihood(output, target)).mean()
        beta = self._value(self.beta, reconstruction)
        kl, floored = self._divergence(posterior, logvar) if kl is None else (kl.mean(), kl.mean())
        if self.capacity is not None:
            floored = (kl - self._value(self.capacity, kl)).abs()
        penalty = beta * floored
        return ELBOTerms(reconstruction + penalty, reconstruction, kl, penalty, beta)

    def _divergence(self, posterior: Tensor | DiagonalGaussian | None, logvar: Tensor | None) -> tuple[Tensor, Tensor]:
        """The divergence, and what free bits make of it."""
        if not isinstance(posterior, DiagonalGaussian):
            assert posterior is not None, "forward has checked that there is one"
            posterior = DiagonalGaussian(posterior, logvar, clamp=self.clamp)
        if not self.free_bits:
            kl = posterior.kl(reduction="batchmean")
            return kl, kl
        each = posterior.kl(reduction="per_dim")
        return each.sum(), each.clamp(min=self.free_bits).sum()

    def _value(self, value: float | Schedule, like: Tensor) -> Tensor:
        if callable(value):
            return value(self.steps).to(like)
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"beta={self.beta}, free_bits={self.free_bits}, capacity={self.capacity}"


class ImportanceWeightedTerms(NamedTuple):
    """What :class:`ImportanceWeightedELBO` returns; averages over batch and samples but for the last."""

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor  # the sampled one: ln q(z|x) - ln p(z)
    log_weights: Tensor  # [K, B]


class ImportanceWeightedELBO(nn.Module):
    r"""The importance-weighted bound of K samples, negated:

    .. math::
        -\ln \frac1K \sum_k w_k, \qquad \ln w_k = \ln p(x|z_k) + \ln p(z_k) - \ln q(z_k|x), \quad z_k \sim q(z|x)

    with a standard normal prior. K = 1 is the ELBO with a sampled divergence; the bound tightens as K grows. The
    decoder runs once, on the K samples of all images together; the images are never repeated: the likelihood is asked
    K times, each time with the same `target`.

    Args:
        likelihood: as in :class:`ELBO`.
        samples: K.
        gradient: "standard"; or "dreg", the doubly reparameterised estimator, whose gradient for the encoder does not
            drown in noise as K grows. The decoder's gradient is the same. "dreg" can be differentiated once.
        clamp: of a log-variance given as a tensor.

    Sources: Burda, Grosse and Salakhutdinov, ICLR 2016; Tucker, Lawson, Gu and Maddison, ICLR 2019 (DReG).
    """

    def __init__(
        self,
        likelihood: Likelihood,
        samples: int,
        *,
        gradient: Literal["standard", "dreg"] = "standard",
        clamp: Clamp = "none",
    ) -> None:
        super().__init__()
        if not callable(likelihood):
            raise TypeError(f"likelihood: got {type(likelihood).__name__}, expected a callable of (output, target)")
        if samples < 1:
            raise ValueError(f"samples: got {samples}, expected at least 1")
        if gradient not in ("standard", "dreg"):
            raise ValueError(f"gradient: got {gradient!r}, expected 'standard' or 'dreg'")
        self.likelihood, self.samples, self.gradient, self.clamp = likelihood, samples, gradient, clamp

    def forward(
        self,
        decoder: Callable[[Tensor], Tensor],
        target: Tensor,
        posterior: Tensor | DiagonalGaussian,
        logvar: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> ImportanceWeightedTerms:
        """Draw the latents, decode them and weigh them.

        Args:
            decoder: from latents `[K B, ...]` to what the likelihood takes, `[K B, ...]`.
            target: `[B, ...]`.
            posterior, logvar: the encoder's Gaussian, as in :class:`ELBO`.
            generator: for the noise.
            noise: `[K, B, ...]` of the latents' shape, instead of drawing it.
        """
        if not isinstance(posterior, DiagonalGaussian):
            assert posterior is not None, "forward has checked that there is one"
            posterior = DiagonalGaussian(posterior, logvar, clamp=self.clamp)
        mean, logvar = posterior.mean, posterior.logvar
        shape = torch.Size((self.samples, *mean.shape))
        if noise is None:
            noise = torch.randn(shape, generator=generator, dtype=mean.dtype, device=mean.device)
        elif noise.shape != shape:
            raise ValueError(f"noise: got shape {tuple(noise.shape)}, expected {tuple(shape)}")
        z = ops.reparameterize(mean.expand(shape), logvar.expand(shape), noise=noise)
        outputs = decoder(z.flatten(0, 1)).unflatten(0, shape[:2])
        nll = torch.stack([_per_sample(self.likelihood(output, target)) for output in outputs])
        kl = self._sampled_divergence(z, mean, logvar, noise)
        log_weights = -nll - kl
        if self.gradient == "dreg" and z.requires_grad:
            # With q held fixed above, this turns sum w d(ln w)/dz into sum w^2 d(ln w)/dz, for the encoder alone.
            share = log_weights.detach().softmax(0).view(*shape[:2], *[1] * (z.dim() - 2)).to(z.dtype)
            z.register_hook(lambda grad: grad * share)
        bound = log_weights.logsumexp(0) - math.log(self.samples)
        return ImportanceWeightedTerms(-bound.mean(), nll.mean(), kl.mean(), log_weights)

    def _sampled_divergence(self, z: Tensor, mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
        """ln q(z|x) - ln p(z) of each sample, [K, B]."""
        z, mean, logvar, noise = (t if t.dtype == torch.float64 else t.float() for t in (z, mean, logvar, noise))
        if self.gradient == "dreg":
            mean, logvar = mean.detach(), logvar.detach()
            noise = (z - mean) * torch.exp(-0.5 * logvar)
        return 0.5 * (z.square() - noise.square() - logvar).flatten(2).sum(2)

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"samples={self.samples}, gradient={self.gradient!r}"


def _per_sample(nll: Tensor) -> Tensor:
    if nll.dim() != 1:
        raise ValueError(
            f"likelihood: it returned shape {tuple(nll.shape)}, expected one number per sample, [B] "
            "(a reduction of 'batch')"
        )
    return nll
