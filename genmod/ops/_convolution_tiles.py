"""Which 4x4 convolutions with stride 2 the CPU's kernels of minimal filtering are faster at than oneDNN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genmod import layout

FORWARD, TRANSPOSED, WEIGHT = range(3)

# Measured with two threads of a processor with AVX-512, float32, batch, channels of both maps and size of the smaller;
# the time of the faster of oneDNN and the matrix product over that of the tiles, forward, transposed and weight,
# contiguous and in channels_last. The weight is transformed at each call, which few tiles do not pay for.
#
#     32  128  64 16    1.45 2.75 1.35    1.43 1.14 1.67        8 256 128  8    1.22 1.18 1.31    1.09 0.98 1.47
#     32  256 128  8    1.39 1.43 1.36    1.27 1.35 1.82        4 256 128  8    0.98 1.01 1.76    1.04 0.98 1.58
#     32  512 256  4    1.88 1.67 3.10    1.41 1.57 3.60        8 512 256  4    1.34 1.38 2.28    1.14 1.10 2.77
#     64  512 256  4    2.10 1.82 3.20    1.46 1.60 3.50        4 512 256  4    2.24 1.18 1.65    0.81 0.87 2.49
#     16  128 128 32    2.23 3.00 1.80    1.50 1.51 1.75       16 128  64  8    1.39 1.09 1.09    0.95 1.09 1.16
#      1   64  32 64    1.41 1.54 1.52    1.34 1.35 1.60        2 128  64 16    1.02 0.89 1.04    0.91 0.89 1.14
#      2   32  32 32    1.31 1.55 1.50    1.12 1.24 1.59        4  64  32 16    1.18 1.25 0.91    1.03 1.12 0.76
FEWEST_CHANNELS = 32


def may_pay(weight: Sequence[int]) -> bool:
    """Whether there are sizes at which they are, for a weight of that shape."""
    return _is_of_few(weight) or min(weight[:2]) >= FEWEST_CHANNELS


def _is_of_few(weight: Sequence[int]) -> bool:
    return weight[1] <= 4 and weight[0] % 16 == 0


def by_tiles(which: int, like: Tensor, small: Sequence[int], weight: Sequence[int]) -> bool:
    """Whether they are, for the convolution, the transposed one or the gradient by the weight.

    Args:
        which: one of the three above.
        like: the image that is convolved, or the gradient; a tensor of the device, dtype and memory format.
        small: the shape of the smaller map, of whatever channels.
        weight: the weight's shape.
    """
    if like.device.type != "cpu" or like.dtype != torch.float32:
        return False
    if _is_of_few(weight):
        return _few_channels(which, like, small, weight)
    if min(weight[:2]) < FEWEST_CHANNELS:
        return False
    tiles, pairs = small[0] * ((small[2] + 1) // 2) * ((small[3] + 1) // 2), weight[0] * weight[1]
    if which == WEIGHT:
        return tiles >= 512 or (tiles >= 16 and pairs >= 8192)
    return tiles >= 256 or (tiles >= 128 and pairs >= 32768) or (tiles >= 32 and pairs >= 65536)


# Between an image of a few channels and a map of many: milliseconds of ours, and of oneDNN's.
#
#     64   64  3 32    forward 2.6 (9.3), transposed 2.8 (6.7), channels_last 1.9 (1.1), 3.4 (5.4)
#     32   64  3 32            1.4 (4.7),            1.4 (3.0),               0.9 (0.5), 1.4 (2.6)
#     32  128  3 16            0.3 (0.3),            0.4 (1.4),               0.3 (0.3), 0.4 (1.2)
#     64   32  1 14            0.1 (0.1),            0.2 (0.8),               0.1 (0.1), 0.2 (0.8)
def _few_channels(which: int, like: Tensor, small: Sequence[int], weight: Sequence[int]) -> bool:
    if which == TRANSPOSED:
        return small[0] >= 8  # each thread takes whole images
    large = small[0] * weight[0] * small[2] * small[3] >= 1 << 20
    return which == FORWARD and large and layout.memory_format_of(like) is torch.contiguous_format
