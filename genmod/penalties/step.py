"""One training step of a critic: adversarial loss and exact penalty, in as few passes as there can be."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from genmod.ops import _checks
from genmod.ops.adversarial import Kind as LossKind
from genmod.ops.adversarial import critic_loss
from genmod.penalties import functional as penalties
from genmod.penalties.outputs import one_per_sample
from genmod.penalties.shared_gradient import Critic, Engine, value_and_input_gradient, values

PenaltyName = Literal["none", "r1", "r2", "r1+r2", "wgan-gp", "wgan-lp", "zero-centered", "dragan", "max-gp"]
_AT_SAMPLES = ("r1", "r2", "r1+r2")
_ELSEWHERE: dict[str, Callable[..., Tensor]] = {
    "wgan-gp": penalties.wgan_gp,
    "wgan-lp": penalties.wgan_lp,
    "zero-centered": penalties.zero_centered,
    "max-gp": penalties.max_gp,
}
_NAMES = ("none", *_AT_SAMPLES, *_ELSEWHERE, "dragan")


class CriticStep(NamedTuple):
    """What a step did, for logging; nothing here requires a gradient."""

    loss: Tensor  #: adversarial loss, 0-d
    penalty: Tensor  #: weighted penalty, 0-d
    real: Tensor  #: the critic's values for the real samples, `[N]`
    fake: Tensor  #: and for the fake ones


def critic_step(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    loss: LossKind | Callable[..., Tensor] = "non_saturating",
    penalty: PenaltyName = "r1",
    gamma: float = 10.0,
    engine: Engine = "auto",
    generator: torch.Generator | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> CriticStep:
    r"""Add the gradient of adversarial loss plus penalty to `.grad` of every parameter of the critic.

    For a piecewise-linear critic the samples that carry R1 or R2 cost four passes of convolutions, loss included, where
    autograd takes six; see :func:`genmod.penalties.value_and_input_gradient`. The samples without a penalty run through
    the critic's own forward; on the CPU, once the shared gradient has taken the critic, with images in channels_last
    and with `conv2d` as a matrix product where that is faster.

    Args:
        critic: from `[N, ...]` to one value per sample.
        real, fake: samples of one shape, dtype and device. No gradient flows back through them.
        loss: a kind of :func:`genmod.ops.critic_loss`, or a function called as `loss(real=values, fake=values)`.
        penalty: "r1", "r2", "r1+r2" (both batches in one call of the critic), "wgan-gp", "wgan-lp", "zero-centered",
            "dragan", "max-gp" or "none".
        gamma: the penalty's weight: :math:`\gamma` of R1, R2 and the zero-centred one (which carry a factor ½),
            :math:`\lambda` of the others.
        engine: see :func:`genmod.penalties.value_and_input_gradient`.
        generator: where interpolation noise is drawn from.
        scaler: a `GradScaler`, for float16 autocast; the values returned are not scaled.

    Returns:
        :class:`CriticStep`: loss, penalty, and the critic's values.

    Raises:
        TypeError, ValueError: samples that do not match, unknown names, a negative `gamma`, more than one value per
            sample. `.grad` is untouched then.
        RuntimeError: `engine="shared"` and a critic that cannot take it.
    """
    _check(real, fake, penalty, gamma)
    real, fake = real.detach(), fake.detach()
    penalties.warn_of_batch_norm(critic)
    with torch.enable_grad():
        if penalty in _AT_SAMPLES:
            real_values, fake_values, extra = _at_samples(critic, real, fake, penalty, gamma, engine)
        else:
            extra = _elsewhere(critic, real, fake, penalty, gamma, engine, generator)
            both = torch.cat((real, fake))
            found = (
                one_per_sample(critic(both), len(both)) if penalty == "none" else values(critic, both, engine=engine)
            )
            real_values, fake_values = found.split(real.shape[0])
        function = loss if callable(loss) else functools.partial(critic_loss, kind=loss)
        adversarial = function(real=real_values, fake=fake_values)
        total = adversarial + extra.to(adversarial.dtype)
        (total if scaler is None else scaler.scale(total)).backward()
    return CriticStep(adversarial.detach(), extra.detach(), real_values.detach(), fake_values.detach())


def _check(real: Any, fake: Any, penalty: Any, gamma: Any) -> None:
    _checks.tensor("real", real)
    _checks.like("fake", fake, "real", real, real.shape)
    _checks.choice("penalty", penalty, _NAMES)
    _checks.nonnegative("gamma", gamma)


def _at_samples(
    critic: Critic, real: Tensor, fake: Tensor, penalty: str, gamma: float, engine: Engine
) -> tuple[Tensor, Tensor, Tensor]:
    """Values at real and fake samples, and a penalty on one of the two or both."""
    if penalty == "r1+r2":
        both, gradients = value_and_input_gradient(critic, torch.cat((real, fake)), engine=engine)
        real_values, fake_values = both.split(real.shape[0])
        return real_values, fake_values, penalties.half_mean_square(gradients, gamma, samples=real.shape[0])
    with_penalty, without = (real, fake) if penalty == "r1" else (fake, real)
    ones, gradients = value_and_input_gradient(critic, with_penalty, engine=engine)
    others = values(critic, without, engine=engine)
    pair = (ones, others) if penalty == "r1" else (others, ones)
    return *pair, penalties.half_mean_square(gradients, gamma)


def _elsewhere(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    penalty: str,
    gamma: float,
    engine: Engine,
    generator: torch.Generator | None,
) -> Tensor:
    """A penalty at other points than the samples themselves."""
    if penalty == "none":
        return torch.zeros((), device=real.device)
    if penalty == "dragan":
        return penalties.dragan(critic, real, weight=gamma, generator=generator, engine=engine)
    weight = {"gamma" if penalty == "zero-centered" else "weight": gamma}
    return _ELSEWHERE[penalty](critic, real, fake, **weight, generator=generator, engine=engine)
