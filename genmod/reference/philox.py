"""The noise stream, specified: Philox4x32-10 words turned into standard normals by Box-Muller.

Element `i` of a stream with a 64-bit `key` belongs to block `i // 64`, word `w = i % 64 // 16` and lane `i % 16`. Its
counter is the 128-bit number `16 * block + lane`; the ten rounds give four 32-bit words `x0..x3`. Words (0, 1) make the
elements of word 0 and 1, words (2, 3) those of 2 and 3: for a pair (x, y)

    u = x / 2^32 + 1 / 2^33   (rounded to float32)        r = sqrt(-2 ln u)
    first  = r cos(2 pi y / 2^32)                          second = r sin(2 pi y / 2^32)

so the largest draw is 6.76 standard deviations out. A stream of uniforms takes the words themselves, in the same order:
`(x >> 9) / 2^23 + 1 / 2^24`, which is exact in float32 and neither 0 nor 1. Noise is a float32 quantity in every
backend, for float64 tensors too. Sixteen lanes per word make one wide register of each word on a CPU and 16-byte
accesses on a GPU.

Sources: Salmon, Moraes, Dror and Shaw, *Parallel random numbers: as easy as 1, 2, 3*, SC 2011; Box and Muller 1958.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor], rounds: int = 10) -> tuple[Tensor, ...]:
    """Philox4x32: four words of counter and two of key, each an int64 tensor of values in [0, 2^32), to four words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # The 64-bit products wrap around int64; shifting and masking recovers the unsigned high word.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & _MASK) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32 & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = k0 + _WEYL[0] & _MASK, k1 + _WEYL[1] & _MASK
    return c0, c1, c2, c3


def _normal_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    u = x.to(torch.float32) * 2.0**-32 + 2.0**-33
    # Float64 from here on, then rounded: the reference is the exact value of what the kernels approximate.
    radius = (-2 * u.double().log()).sqrt()
    angle = y.double() * (2 * math.pi / 2**32)
    return (radius * angle.cos()).float(), (radius * angle.sin()).float()


def _words(seed: Tensor, numel: int) -> tuple[Tensor, ...]:
    """The four words of every counter of the blocks that hold the first `numel` elements."""
    count = torch.arange((numel + 63) // 64 * 16, device=seed.device)
    zero = torch.zeros_like(count)
    key = seed.reshape(())
    return philox4x32((count & _MASK, count >> 32, zero, zero), (key & _MASK, key >> 32 & _MASK))


def _in_order(words: tuple[Tensor, ...], numel: int) -> Tensor:
    return torch.stack([w.view(-1, 16) for w in words], dim=1).flatten()[:numel]


def normal(seed: Tensor, numel: int) -> Tensor:
    """The first `numel` standard normals of the stream with this `seed` (one int64), as a flat float32 tensor."""
    words = _words(seed, numel)
    return _in_order((*_normal_pair(words[0], words[1]), *_normal_pair(words[2], words[3])), numel)


def uniform(seed: Tensor, numel: int) -> Tensor:
    """The first `numel` uniforms in (0, 1) of the stream with this `seed`, as a flat float32 tensor."""
    words = tuple((w >> 9).float() * 2.0**-23 + 2.0**-24 for w in _words(seed, numel))
    return _in_order(words, numel)
