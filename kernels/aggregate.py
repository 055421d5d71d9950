"""Total correlation, maximum mean discrepancy and DIP on a GPU, forward and backward: the family's face.

The functions have the names, arguments and results of the dispatcher's ops. For the maths see
genmod/reference/aggregate.py. The kernels are in kernels/total_correlation.py, kernels/total_correlation_backward.py
and kernels/mmd.py; what these share, how all pairs are cut into tiles, is in kernels/pairs.py. Nothing of batch x batch
x latent is kept, nor of batch x batch: a backward computes its tiles again. A covariance, of latent x latent, is in
kernels/dip.py. Sums have a fixed order, and no number is added to by two programs.
"""

from __future__ import annotations

from genmod.kernels import dip as _dip
from genmod.kernels import mmd as _mmd
from genmod.kernels import total_correlation as _forward
from genmod.kernels import total_correlation_backward as _backward
from genmod.kernels.dip import dip, dip_backward
from genmod.kernels.mmd import mmd, mmd_backward
from genmod.kernels.total_correlation import total_correlation
from genmod.kernels.total_correlation_backward import total_correlation_backward

__all__ = [
    "COMPILE_CASES",
    "dip",
    "dip_backward",
    "mmd",
    "mmd_backward",
    "total_correlation",
    "total_correlation_backward",
]

#: What to compile ahead of time (see genmod/testing/compile_only.py).
COMPILE_CASES = {**_forward.CASES, **_backward.CASES, **_mmd.CASES, **_dip.CASES}
