r"""Gradient penalties, each a 0-d tensor to call `.backward()` on.

With a critic :math:`D` and its input gradient :math:`g_i = \nabla_x D(x_i)`, norms are taken per sample, over all of
its elements, and means over the batch. Every function takes `engine`, explained at `value_and_input_gradient`; the
parameters of the critic receive exact gradients either way. Samples are constants here: none of these penalties trains
a generator.

Under autocast the critic runs as it would, and norms are taken in float32. The inner gradient is that of the critic's
output, never of a scaled loss, so a `GradScaler` scales a penalty once, like any other loss.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from genmod.ops import _checks
from genmod.penalties import interpolate
from genmod.penalties.shared_gradient import Critic, Engine, value_and_input_gradient

_warned_of_batch_norm: weakref.WeakSet[Any] = weakref.WeakSet()


def r1(critic: Critic, real: Tensor, *, gamma: float = 10.0, engine: Engine = "auto") -> Tensor:
    r""":math:`\tfrac{\gamma}{2}\,\mathbb E\lVert\nabla D(x)\rVert^2` on real samples.

    Args:
        critic: from `[N, ...]` to one value per sample.
        real: samples, `[N, ...]`.
        gamma: weight, >= 0.
        engine: see :func:`value_and_input_gradient`.

    Source: Mescheder, Geiger and Nowozin, *Which training methods for GANs do actually converge?*, ICML 2018.
    """
    return _mean_square(critic, "real", real, gamma, engine)


def r2(critic: Critic, fake: Tensor, *, gamma: float = 10.0, engine: Engine = "auto") -> Tensor:
    """:func:`r1` on fake samples. Source: Mescheder et al., ICML 2018."""
    return _mean_square(critic, "fake", fake, gamma, engine)


def r1_r2(critic: Critic, real: Tensor, fake: Tensor, *, gamma: float = 10.0, engine: Engine = "auto") -> Tensor:
    """:func:`r1` plus :func:`r2`, in one call of the critic on both batches.

    Source: Huang et al., *The GAN is dead; long live the GAN!*, NeurIPS 2024.
    """
    _check_pair(real, fake, gamma=gamma)
    _, gradients = _gradients(critic, torch.cat((real.detach(), fake.detach())), engine)
    return half_mean_square(gradients, gamma, samples=real.shape[0])


def wgan_gp(
    critic: Critic, real: Tensor, fake: Tensor, *, weight: float = 10.0, target: float = 1.0, eps: float = 1e-12,
    generator: torch.Generator | None = None, engine: Engine = "auto",
) -> Tensor:  # fmt: skip
    r""":math:`\lambda\,\mathbb E(\lVert\nabla D(\hat x)\rVert - k)^2` at random points between real and fake samples.

    Args:
        critic: from `[N, ...]` to one value per sample.
        real, fake: samples of one shape.
        weight: :math:`\lambda`, >= 0.
        target: :math:`k`, >= 0.
        eps: added to the squared norm inside the root, whose derivative at 0 would be infinite.
        generator: where the points are drawn from; the device's default if omitted.
        engine: see :func:`value_and_input_gradient`.

    Source: Gulrajani et al., *Improved training of Wasserstein GANs*, NeurIPS 2017.
    """
    _check_pair(real, fake, weight=weight, target=target, eps=eps)
    _, gradients = _gradients(critic, interpolate.between(real, fake, generator), engine)
    return weight * (norms(gradients, eps) - target).square().mean()


def wgan_lp(
    critic: Critic, real: Tensor, fake: Tensor, *, weight: float = 10.0, target: float = 1.0, eps: float = 1e-12,
    generator: torch.Generator | None = None, engine: Engine = "auto",
) -> Tensor:  # fmt: skip
    r"""One-sided :func:`wgan_gp`: :math:`\lambda\,\mathbb E\max(0, \lVert\nabla D(\hat x)\rVert - k)^2`.

    Source: Petzka, Fischer and Lukovnikov, *On the regularization of Wasserstein GANs*, ICLR 2018.
    """
    _check_pair(real, fake, weight=weight, target=target, eps=eps)
    _, gradients = _gradients(critic, interpolate.between(real, fake, generator), engine)
    return weight * (norms(gradients, eps) - target).clamp(min=0).square().mean()


def dragan(
    critic: Critic, real: Tensor, *, weight: float = 10.0, target: float = 1.0, spread: float = 0.5, eps: float = 1e-12,
    generator: torch.Generator | None = None, engine: Engine = "auto",
) -> Tensor:  # fmt: skip
    r""":math:`\lambda\,\mathbb E(\lVert\nabla D(x + \delta)\rVert - k)^2` around real samples.

    :math:`\delta` is uniform noise in `[0, spread)` times the standard deviation of the batch.
    Source: Kodali et al., *On convergence and stability of GANs*, 2017.
    """
    _check_samples("real", real)
    _nonnegative(weight=weight, target=target, spread=spread, eps=eps)
    _, gradients = _gradients(critic, interpolate.around(real, spread, generator), engine)
    return weight * (norms(gradients, eps) - target).square().mean()


def zero_centered(
    critic: Critic, real: Tensor, fake: Tensor, *, gamma: float = 10.0, generator: torch.Generator | None = None,
    engine: Engine = "auto",
) -> Tensor:  # fmt: skip
    r""":math:`\tfrac{\gamma}{2}\,\mathbb E\lVert\nabla D(\hat x)\rVert^2` between real and fake samples.

    Source: Thanh-Tung, Tran and Venkatesh, *Improving generalization and stability of GANs*, ICLR 2019.
    """
    _check_pair(real, fake, gamma=gamma)
    _, gradients = _gradients(critic, interpolate.between(real, fake, generator), engine)
    return half_mean_square(gradients, gamma)


def max_gp(
    critic: Critic, real: Tensor, fake: Tensor, *, weight: float = 1.0, generator: torch.Generator | None = None,
    engine: Engine = "auto",
) -> Tensor:  # fmt: skip
    r""":math:`\lambda \max_i \lVert\nabla D(\hat x_i)\rVert^2`, the largest slope between real and fake samples.

    Source: Zhou et al., *Lipschitz generative adversarial nets*, ICML 2019.
    """
    _check_pair(real, fake, weight=weight)
    if not real.shape[0]:
        raise ValueError("real: got an empty batch, which has no largest gradient; expected at least one sample")
    _, gradients = _gradients(critic, interpolate.between(real, fake, generator), engine)
    return weight * square_norms(gradients).amax()


# What the formulas share.


def square_norms(gradients: Tensor) -> Tensor:
    """:math:`\\lVert g_i \\rVert^2`, `[N]`, in float32 or better."""
    wide = gradients if gradients.dtype == torch.float64 else gradients.float()
    return wide.reshape(wide.shape[0], -1).square().sum(1) if wide.numel() else wide.new_zeros(wide.shape[0])


def norms(gradients: Tensor, eps: float) -> Tensor:
    """:math:`\\sqrt{\\lVert g_i \\rVert^2 + \\epsilon}`, `[N]`: differentiable at zero."""
    return (square_norms(gradients) + eps).sqrt()


def half_mean_square(gradients: Tensor, gamma: float, samples: int | None = None) -> Tensor:
    """:math:`\\tfrac{\\gamma}{2}` times the mean of the squared norms over `samples` (default: all)."""
    return 0.5 * gamma * square_norms(gradients).sum() / max(gradients.shape[0] if samples is None else samples, 1)


def _mean_square(critic: Critic, name: str, x: Tensor, gamma: float, engine: Engine) -> Tensor:
    _check_samples(name, x)
    _nonnegative(gamma=gamma)
    return half_mean_square(_gradients(critic, x, engine)[1], gamma)


def _gradients(critic: Critic, x: Tensor, engine: Engine) -> tuple[Tensor, Tensor]:
    warn_of_batch_norm(critic)
    return value_and_input_gradient(critic, x, engine=engine)


def warn_of_batch_norm(critic: Critic) -> None:
    """Once per critic: with batch normalisation, a gradient by one sample is no property of that sample."""
    if not isinstance(critic, torch.nn.Module) or critic in _warned_of_batch_norm:
        return
    if any(isinstance(m, _BatchNorm) and m.training for m in critic.modules()):
        _warned_of_batch_norm.add(critic)
        warnings.warn(
            f"{type(critic).__name__} has batch normalisation in training: its output for one sample depends on all "
            "others, so a penalty on each sample's own gradient does not bound what it is meant to. Layer, instance or "
            "group normalisation keep samples apart",
            stacklevel=4,
        )


def _check_samples(name: str, x: Any) -> None:
    _checks.tensor(name, x)


def _check_pair(real: Any, fake: Any, **numbers: float) -> None:
    _checks.tensor("real", real)
    _checks.like("fake", fake, "real", real, real.shape)
    _nonnegative(**numbers)


def _nonnegative(**numbers: float) -> None:
    for name, value in numbers.items():
        _checks.nonnegative(name, value)
