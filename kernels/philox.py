"""Normals from Philox4x32-10 and Box-Muller; genmod/reference/philox.py specifies the stream and names the sources."""

import triton
import triton.language as tl

from genmod.kernels.elementary import log_positive, sincos_turn


@triton.jit
def normal_words(seed, counter):
    """The normals of words 0 to 3 of 128-bit counters (counter, 0), under the 64-bit key `seed`; float32 always."""
    counter = counter.to(tl.int64)
    w0, w1, w2, w3 = tl.philox(seed, counter.to(tl.uint32), (counter >> 32).to(tl.uint32), 0, 0)
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    return n0, n1, n2, n3


@triton.jit
def box_muller(x, y):
    """Two normals from two words: the radius from x, the angle from y."""
    u = x.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # (x + 1/2) / 2^32, never 0
    radius = tl.sqrt(-2.0 * log_positive(u))
    sin, cos = sincos_turn(y)
    return radius * cos, radius * sin


@triton.jit
def normal_parts(seed, start, loaded, BLOCK: tl.constexpr):
    """The normals of the four parts of BLOCK elements from flat index `start`, a multiple of 64 (see kernels/rows.py).

    `loaded` is a tile of one part that came from memory. Values that do not depend on memory get another distribution
    over the threads than those that do, and all noise would travel through shared memory to where it is used. A zero
    made of `loaded` ties the counters to it; the compiler removes it, but later than it decides on distributions.
    """
    zero = (loaded.to(tl.float32).to(tl.int32, bitcast=True) & 1) >> 1
    return normal_words(tl.load(seed), start // 4 + tl.arange(0, BLOCK // 4) + zero)
