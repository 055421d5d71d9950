"""Where penalties look: on the way from real to fake samples, or around real ones. Noise is drawn on the device."""

from __future__ import annotations

import torch
from torch import Tensor


def between(real: Tensor, fake: Tensor, generator: torch.Generator | None) -> Tensor:
    """A uniformly random point on the line from each fake sample to its real one."""
    shape = (real.shape[0], *[1] * (real.dim() - 1))
    t = torch.rand(shape, dtype=real.dtype, device=real.device, generator=generator)
    return torch.lerp(fake.detach(), real.detach(), t)


def around(real: Tensor, spread: float, generator: torch.Generator | None) -> Tensor:
    """Each sample plus uniform noise of `spread` times the standard deviation of the batch."""
    noise = torch.rand(real.shape, dtype=real.dtype, device=real.device, generator=generator)
    real = real.detach()
    return real + spread * real.std(correction=0) * noise
