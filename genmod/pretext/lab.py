"""sRGB and CIE L*a*b* (D65, 2 degree observer), as batches on any device; the numbers of scikit-image's `color`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# IEC 61966-2-1, with the digits that scikit-image has, and divided by the white point; its inverse is computed, so that
# there and back is exact.
_XYZ_FROM_RGB = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
) / np.array([[0.95047], [1.0], [1.08883]])
_RGB_FROM_XYZ = np.linalg.inv(_XYZ_FROM_RGB)
_EPSILON, _KAPPA = 0.008856, 7.787  # where the cube root becomes a line, and the line's slope


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB `[..., 3, H, W]` in [0, 1] to Lab: L in [0, 100], a and b about -110 to 110.

    Half precision is computed in float32 and comes out in it: a has steps of 0.06 at 100 in float16 and of 0.5 in
    bfloat16.

    Raises:
        TypeError, ValueError: not a floating-point tensor with three channels.
    """
    rgb = _check("rgb", rgb)
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = _mix(_XYZ_FROM_RGB, linear)
    root = torch.where(xyz > _EPSILON, xyz.clamp(min=_EPSILON) ** (1 / 3), _KAPPA * xyz + 16 / 116)
    x, y, z = root.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Lab `[..., 3, H, W]` to sRGB; what is outside of [0, 1], which a screen cannot show, is cut off.

    Half precision is computed in float32 and comes out in it.

    Raises:
        TypeError, ValueError: not a floating-point tensor with three channels.
    """
    light, a, b = _check("lab", lab).unbind(-3)
    y = (light + 16) / 116
    # No surface has less than no blue light: without this, dark and very yellow comes out dark and blue.
    root = torch.stack([y + a / 500, y, (y - b / 200).clamp(min=0)], -3)
    edge = _EPSILON ** (1 / 3)
    xyz = torch.where(root > edge, root**3, (root - 16 / 116) / _KAPPA)
    linear = _mix(_RGB_FROM_XYZ, xyz)
    rgb = torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return rgb.clamp(0, 1)


def _check(name: str, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = f"dtype {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: got {got}, expected a floating-point tensor [..., 3, H, W]")
    if x.dim() < 3 or x.shape[-3] != 3:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected [..., 3, H, W]")
    return x if x.dtype == torch.float64 else x.float()


def _mix(matrix: np.ndarray, x: Tensor) -> Tensor:
    """A 3x3 matrix on the channels. Not as a matrix product: a GPU may round its factors to ten bits (TF32)."""
    first, second, third = x.unbind(-3)
    return torch.stack([p * first + q * second + r * third for p, q, r in matrix.tolist()], -3)
