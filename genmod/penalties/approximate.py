"""R1 and R2 without a gradient: the critic's answer to a small perturbation."""

from __future__ import annotations

import torch
from torch import Tensor

from genmod.ops import _checks
from genmod.penalties.outputs import one_per_sample
from genmod.penalties.shared_gradient import Critic


def approximate_r1(
    critic: Critic, real: Tensor, *, gamma: float = 10.0, sigma: float = 0.01, generator: torch.Generator | None = None
) -> Tensor:
    r""":math:`\tfrac{\gamma}{2}\,\mathbb E\bigl(D(x + \delta) - D(x)\bigr)^2 d / \lVert\delta\rVert^2`.

    An estimate of R1: :math:`\delta` is Gaussian noise of standard deviation :math:`\sigma` and :math:`d` the number of
    elements of a sample. The perturbation is added in float32 and then rounded to the precision that the critic runs
    in; what counts is the difference that is left after that rounding: divided by :math:`\sigma^2` instead, the
    estimate would take the noise of rounding for slope, a fifth too much in bfloat16 for pixels of magnitude 2 to 4 at
    the default. No second derivative is taken, so any critic can be compiled; on a piecewise-linear one it saves no
    arithmetic over the exact penalty.

    Args:
        critic: from `[N, ...]` to one value per sample.
        real: samples, `[N, ...]`; for R2 give the fake ones.
        gamma: weight, >= 0, as in :func:`r1`. With weight :math:`\lambda` on the plain squared difference,
            :math:`\gamma = 2\lambda\sigma^2`.
        sigma: > 0.
        generator: where the noise is drawn from.

    Source: Lin et al., *Diffusion adversarial post-training for one-step video generation*, ICML 2025.
    """
    _checks.tensor("real", real)
    _checks.nonnegative("gamma", gamma)
    _checks.nonnegative("sigma", sigma)
    if not sigma:
        raise ValueError("sigma: got 0, expected a number > 0")
    device, dtype = real.device.type, real.dtype
    if torch.is_autocast_enabled(device) and dtype == torch.float32:
        dtype = torch.get_autocast_dtype(device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = real.detach().to(dtype)
    noise = torch.randn(x.shape, dtype=wide, device=x.device, generator=generator)
    perturbed = (x.to(wide) + sigma * noise).to(dtype)
    moved = (perturbed.to(wide) - x.to(wide)).reshape(x.shape[0], -1).square().sum(1)
    before, after = (one_per_sample(critic(t), t.shape[0]).to(wide) for t in (x, perturbed))
    elements = max(x[:1].numel(), 1)
    ratio = (after - before).square() * elements / moved.clamp(min=torch.finfo(wide).tiny)
    return 0.5 * gamma * ratio.sum() / max(x.shape[0], 1)


def approximate_r2(
    critic: Critic, fake: Tensor, *, gamma: float = 10.0, sigma: float = 0.01, generator: torch.Generator | None = None
) -> Tensor:
    """:func:`approximate_r1` on fake samples."""
    return approximate_r1(critic, fake, gamma=gamma, sigma=sigma, generator=generator)
