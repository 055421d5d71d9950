"""Which 4x4 convolutions with stride 2 the CPU's kernels of minimal filtering are faster at than oneDNN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FORWARD, TRANSPOSED, WEIGHT = range(3)

# Measured with two threads of a processor with AVX-512, float32, batch, channels of both maps and size of the smaller; the
# time of the faster of oneDNN and the matrix product over that of the tiles, forward, transposed and weight, contiguous
# and in channels_last. The weight is transformed at each call, which few tiles do not pay for.
#
#     32  128  64 16    1.45 2.75 1.35    1.43 1.14 1.67        8 256 128  8    1.02 0.96 1.34    0.93 1.02 1.43
#     32  256 128  8    1.39 1.43 1.36    1.27 1.35 1.82        4 256 128  8    0.81 0.85 1.31    0.78 0.79 1.44
#     32  512 256  4    1.50 1.24 2.35    1.12 1.31 2.55       16 512 256  4    0.89 1.08 2.05    0.67 0.78 2.27
#     64  512 256  4    1.60 1.66 2.97    1.18 1.22 3.33        8 512 256  4    0.72 0.72 2.00    0.64 0.69 2.02
#     16  128 128 32    2.23 3.00 1.53    1.51 2.11 1.47       16 128  64  8    1.14 1.15 1.23    0.97 0.94 1.21
#      1   64  32 64    1.64 1.57 1.57    1.32 1.31 1.32        4  64  32 16    1.22 1.29 0.94    1.06 1.10 0.80
#      2   32  32 32    1.28 1.46 2.22    1.01 1.24 1.59       16  64  32  8    1.36 1.36 0.97    1.03 1.22 0.89
FEWEST_CHANNELS = 32


def by_tiles(which: int, like: Tensor, small: Sequence[int], weight: Sequence[int]) -> bool:
    """Whether they are, for the convolution, the transposed one or the gradient by the weight.

    Args:
        which: one of the three above.
        like: a tensor of the device and dtype.
        small: the shape of the smaller map, of whatever channels.
        weight: the weight's shape.
    """
    if like.device.type != "cpu" or like.dtype != torch.float32 or min(weight[:2]) < FEWEST_CHANNELS:
        return False
    tiles, pairs = small[0] * ((small[2] + 1) // 2) * ((small[3] + 1) // 2), weight[0] * weight[1]
    if which == WEIGHT:
        return tiles >= 512 or (tiles >= 32 and pairs >= 8192)
    return tiles >= 256 or (tiles >= 128 and pairs >= 65536)
