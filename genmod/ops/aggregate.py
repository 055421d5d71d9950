"""Family `aggregate`: what a batch says about the aggregate posterior, without a batch x batch x latent tensor.

The public functions check their arguments and call the dispatcher; schemas, fakes and autograd stand below them. The
`_rows` functions compute some rows' share of a batch that is spread over processes (see `genmod.nn.distributed`). The
maths is in `genmod.reference.aggregate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from genmod.ops import _checks
from genmod.ops._library import define, differentiate, differentiate_backward
from genmod.ops._wanted import only_wanted, wanted_bits
from genmod.reference import aggregate as reference

Estimator = Literal["mss", "mws"]
Kernel = Literal["imq", "rbf"]
DIPKind = Literal["i", "ii"]
ESTIMATORS = ("mss", "mws")
KERNELS = ("imq", "rbf")
DIP_KINDS = ("i", "ii")
#: The scales of Tolstikhin et al. (2018).
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def total_correlation(
    z: Tensor, mean: Tensor, logvar: Tensor, *, dataset_size: int, estimator: Estimator = "mss"
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The three parts of a VAE's KL: mutual information, total correlation and dimension-wise KL, in nats.

    .. math::
        \mathbb{E}\left[\log\frac{q(z|x)}{q(z)}\right], \qquad
        \mathbb{E}\left[\log\frac{q(z)}{\prod_d q(z_d)}\right], \qquad
        \mathbb{E}\left[\log\frac{\prod_d q(z_d)}{p(z)}\right]

    averaged over the batch, with :math:`q(z) = \frac1N\sum_n q(z|x_n)` estimated from the batch. They add up to the
    batch's :math:`\log q(z|x) - \log p(z)`, with p the standard normal. Time is O(B²D), memory O(BD).

    Args:
        z: `[B, D]`, sample i drawn from row i of `mean` and `logvar`; float32, float64, bfloat16 or float16.
        mean, logvar: `[B, D]`, the posteriors, with the dtype and device of `z`.
        dataset_size: N, the number of samples that batches are drawn from; at least B.
        estimator: "mss", minibatch stratified sampling, unbiased for q(z), which needs B >= 2; or "mws", minibatch
            weighted sampling, biased low. The weights are the paper's; for "mss" the one sample that carries the
            weight (N - M) / (NM), M = B - 1, is the next one in the batch, so a batch should come shuffled.

    Returns:
        `(mutual_information, total_correlation, dimension_kl)`, scalars in float32 (float64 for float64 inputs).

    Raises:
        TypeError: not a tensor, not floating point, dtypes that differ, or a `dataset_size` that is not an integer.
        ValueError: not a matrix, shapes or devices that differ, an empty batch, one sample with "mss", a
            `dataset_size` smaller than the batch, or an unknown `estimator`.

    Differentiable twice, in all three tensors, in the same memory (but O(B²D) under `torch.func`). Kept for backward:
    the inputs and two numbers for each of `[B, D + 1]` densities.
    Source: Chen et al., *Isolating sources of disentanglement in variational autoencoders*, NeurIPS 2018, appendix C.
    """
    check_posterior(z, mean, logvar)
    check_estimator(estimator)
    check_dataset_size(dataset_size)
    check_batch(z.shape[0], dataset_size, estimator)
    return total_correlation_rows(z, mean, logvar, 0, dataset_size=dataset_size, estimator=estimator)


def total_correlation_rows(
    z: Tensor, mean: Tensor, logvar: Tensor, first_row: int, *, dataset_size: int, estimator: Estimator
) -> tuple[Tensor, Tensor, Tensor]:
    """The share of the rows `z`, drawn from the posteriors `first_row` and on, in :func:`total_correlation` of the
    whole batch that `mean` and `logvar` have; shares add up. Arguments are taken as checked."""
    call = reference.total_correlation if torch._C._are_functorch_transforms_active() else _total_correlation
    return call(z, mean, logvar, dataset_size, estimator, first_row)[:3]


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel = "imq",
    scales: Sequence[float] = SCALES,
    unbiased: bool = True,
) -> Tensor:
    r"""Squared maximum mean discrepancy of two samples, with a kernel summed over several widths.

    .. math::
        \mathbb{E}\,k(x, x') + \mathbb{E}\,k(y, y') - 2\,\mathbb{E}\,k(x, y), \qquad
        k(x, y) = \sum_s \frac{C_s}{C_s + \lVert x - y\rVert^2} \text{ or } \sum_s e^{-\lVert x - y\rVert^2 / C_s}

    with :math:`C_s = 2Ds`, since 2D is the mean squared distance of two standard normal samples. Each distance is
    computed once for all scales, from differences, so that points that (nearly) coincide keep their digits. Time is
    O((n + m)²D), memory O((n + m)D).

    Args:
        x: `[n, D]`; float32, float64, bfloat16 or float16.
        y: `[m, D]`, with the dtype and device of `x`.
        kernel: "imq", inverse multiquadratic; or "rbf", Gaussian.
        scales: s, one or more positive numbers; those of the Wasserstein auto-encoder by default.
        unbiased: leave out pairs of a point with itself, which makes the estimate unbiased, and possibly negative.

    Returns:
        A scalar in float32 (float64 for float64 inputs).

    Raises:
        TypeError: not a tensor, not floating point, dtypes that differ, or scales that are not numbers.
        ValueError: not a matrix, another number of columns or another device, no points, fewer than two in either
            sample if unbiased, no scale or one that is not positive and finite, or an unknown `kernel`.

    Differentiable twice, in both tensors, in the same memory (but O((n + m)²D) under `torch.func`). Kept for backward:
    the inputs.
    Source: Gretton et al., *A kernel two-sample test*, JMLR 2012; Tolstikhin et al., *Wasserstein auto-encoders*, 2018.
    """
    check_kernel(kernel, scales)
    check_samples(x, y, unbiased)
    return mmd_rows(x, y, None, None, 0, 0, kernel=kernel, scales=scales, unbiased=unbiased)


def mmd_rows(
    x: Tensor,
    y: Tensor,
    all_x: Tensor | None,
    all_y: Tensor | None,
    first_x: int,
    first_y: int,
    *,
    kernel: Kernel,
    scales: Sequence[float],
    unbiased: bool,
) -> Tensor:
    """The share of the rows `x` of `all_x` and `y` of `all_y`, from `first_x` and `first_y` on, in :func:`mmd` of both
    whole samples; shares add up. Arguments are taken as checked."""
    widths = [2.0 * x.shape[1] * s if x.shape[1] else float(s) for s in scales]
    call = reference.mmd if torch._C._are_functorch_transforms_active() else _mmd
    return call(x, y, all_x, all_y, first_x, first_y, kernel, widths, bool(unbiased))


def dip(
    mean: Tensor,
    logvar: Tensor | None = None,
    *,
    kind: DIPKind = "i",
    lambda_od: float = 10.0,
    lambda_d: float | None = None,
) -> Tensor:
    r"""The penalty of DIP-VAE: the distance of the aggregate posterior's covariance from the identity.

    .. math::
        \lambda_{od} \sum_{i \ne j} C_{ij}^2 + \lambda_d \sum_i (C_{ii} - 1)^2

    with C the covariance of `mean` over the batch ("i"), to which "ii" adds the batch's mean of :math:`e^\ell` on the
    diagonal. Covariances divide by B, and are computed from centred means: an average that is large beside its spread
    costs no digits. Time is O(BD²), memory O(BD + D²).

    Args:
        mean, logvar: `[B, D]`, of one dtype and device; float32, float64, bfloat16 or float16. "i" does not use
            `logvar`.
        kind: "i" or "ii".
        lambda_od: factor of the off-diagonal part, >= 0.
        lambda_d: factor of the diagonal part, >= 0; if omitted the paper's: 10 `lambda_od` for "i", `lambda_od` for
            "ii".

    Returns:
        A scalar in float32 (float64 for float64 inputs).

    Raises:
        TypeError: not a tensor, not floating point, dtypes that differ, or factors that are not numbers.
        ValueError: not a matrix, shapes or devices that differ, an empty batch, negative factors, or an unknown `kind`.

    Differentiable twice, in both tensors. Kept for backward: the inputs and C.
    Source: Kumar et al., *Variational inference of disentangled latent concepts from unlabeled observations*,
    ICLR 2018.
    """
    check_dip(kind, lambda_od, lambda_d)
    check_moments(mean, logvar, kind)
    call = reference.dip if torch._C._are_functorch_transforms_active() else _dip
    factors = float(lambda_od), _diagonal_factor(kind, lambda_od, lambda_d)
    penalty, _ = call(mean, logvar if kind == "ii" else None, *factors)
    return penalty


def dip_over(
    mean: Tensor,
    logvar: Tensor | None,
    batch: int,
    total: Callable[[Tensor], Tensor],
    *,
    kind: DIPKind,
    lambda_od: float,
    lambda_d: float | None,
) -> Tensor:
    """:func:`dip` of a batch of which `mean` and `logvar` are a part; `total` sums a tensor over all parts. Arguments
    are taken as checked. Plain PyTorch: its derivatives sum over all parts once more."""
    given, factor = logvar if kind == "ii" else None, _diagonal_factor(kind, lambda_od, lambda_d)
    return reference.dip_over(mean, given, lambda_od, factor, batch, total)


def _diagonal_factor(kind: DIPKind, lambda_od: float, lambda_d: float | None) -> float:
    if lambda_d is not None:
        return float(lambda_d)
    return 10.0 * lambda_od if kind == "i" else float(lambda_od)


# Arguments. The modules of `genmod.nn` check theirs here too.


def _check_matrix(name: str, value: Any) -> None:
    _checks.tensor(name, value)
    if value.dim() != 2:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected a matrix [batch, latent]")


def check_posterior(z: Any, mean: Any, logvar: Any) -> None:
    """Three matrices of one shape."""
    _check_matrix("z", z)
    _checks.like("mean", mean, "z", z, z.shape)
    _checks.like("logvar", logvar, "z", z, z.shape)


def check_estimator(estimator: Any) -> None:
    """One of the estimators."""
    _checks.choice("estimator", estimator, ESTIMATORS)


def check_dataset_size(value: Any) -> None:
    """A positive integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"dataset_size: got {type(value).__name__}, expected an integer")
    if value < 1:
        raise ValueError(f"dataset_size: got {value}, expected at least 1")


def check_batch(batch: int, dataset_size: int, estimator: str) -> None:
    """Enough samples for the estimator, and no more than the dataset has."""
    least = 2 if estimator == "mss" else 1
    if batch < least:
        raise ValueError(f"z: got a batch of {batch}, expected at least {least} for the estimator {estimator!r}")
    if dataset_size < batch:
        raise ValueError(f"dataset_size: got {dataset_size}, expected at least the batch, which is {batch}")


def check_kernel(kernel: Any, scales: Any) -> None:
    """One of the kernels, and its positive scales."""
    _checks.choice("kernel", kernel, KERNELS)
    if isinstance(scales, (str, Tensor)) or not isinstance(scales, Sequence):
        raise TypeError(f"scales: got {type(scales).__name__}, expected a sequence of numbers")
    if not scales:
        raise ValueError("scales: got none, expected at least one")
    for scale in scales:
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise TypeError(f"scales: got {type(scale).__name__}, expected numbers")
        if not 0 < scale < float("inf"):
            raise ValueError(f"scales: got {scale}, expected finite numbers > 0")


def check_samples(x: Any, y: Any, unbiased: bool, processes: int = 1) -> None:
    """Two matrices of equally many columns, and rows enough for the estimate in all processes together."""
    _check_matrix("x", x)
    _check_matrix("y", y)
    _checks.like("y", y, "x", x, (y.shape[0], x.shape[1]))
    least, kind = (2, "unbiased") if unbiased else (1, "biased")
    for name, points in (("x", x.shape[0]), ("y", y.shape[0])):
        if points * processes < least:
            raise ValueError(f"{name}: got {points} points, expected at least {least} for the {kind} estimate")


def check_moments(mean: Any, logvar: Any, kind: str) -> None:
    """Two matrices of one shape, or one where the kind needs no more; not empty batches."""
    _check_matrix("mean", mean)
    if logvar is not None:
        _checks.like("logvar", logvar, "mean", mean, mean.shape)
    elif kind == "ii":
        raise ValueError("logvar: got None, expected a tensor for the kind 'ii'")
    if not mean.shape[0]:
        raise ValueError("mean: got an empty batch, expected at least one sample")


def check_dip(kind: Any, lambda_od: Any, lambda_d: Any) -> None:
    """One of the kinds, and its factors."""
    _checks.choice("kind", kind, DIP_KINDS)
    _checks.nonnegative("lambda_od", lambda_od)
    if lambda_d is not None:
        _checks.nonnegative("lambda_d", lambda_d)


# Dispatcher ops. Every backend implements exactly these.


def _accumulate(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float64 if like.dtype == torch.float64 else torch.float32)


def _total_correlation_fake(z, mean, logvar, dataset_size, estimator, first_row):
    return *(_accumulate(z) for _ in range(3)), _accumulate(z, 2, z.shape[0], z.shape[1] + 1)


def _empty_gradients(wanted: int, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    like = next(t for t in inputs if t is not None)
    return tuple(like.new_empty(t.shape if t is not None and wanted >> i & 1 else (0,)) for i, t in enumerate(inputs))


def _total_correlation_backward_fake(
    grad_mutual_information,
    grad_total_correlation,
    grad_dimension_kl,
    z,
    mean,
    logvar,
    normalizers,
    dataset_size,
    estimator,
    first_row,
    wanted,
):
    return _empty_gradients(wanted, z, mean, logvar)


def _mmd_fake(x, y, all_x, all_y, first_x, first_y, kernel, widths, unbiased):
    return _accumulate(x)


def _mmd_backward_fake(grad, x, y, all_x, all_y, first_x, first_y, kernel, widths, unbiased, wanted):
    return _empty_gradients(wanted, x, y, all_x, all_y)


define(
    "aggregate",
    "total_correlation(Tensor z, Tensor mean, Tensor logvar, int dataset_size, str estimator, int first_row) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
    _total_correlation_fake,
)
define(
    "aggregate",
    "total_correlation_backward(Tensor? grad_mutual_information, Tensor? grad_total_correlation, "
    "Tensor? grad_dimension_kl, Tensor z, Tensor mean, Tensor logvar, Tensor normalizers, int dataset_size, "
    "str estimator, int first_row, int wanted) -> (Tensor, Tensor, Tensor)",
    _total_correlation_backward_fake,
)


def _dip_fake(mean, logvar, lambda_od, lambda_d):
    return _accumulate(mean), _accumulate(mean, mean.shape[1] + 1, mean.shape[1])


def _dip_backward_fake(grad, mean, logvar, moments, lambda_od, lambda_d, wanted):
    return _empty_gradients(wanted, mean, logvar)


define(
    "aggregate",
    "mmd(Tensor x, Tensor y, Tensor? all_x, Tensor? all_y, int first_x, int first_y, str kernel, float[] widths, "
    "bool unbiased) -> Tensor",
    _mmd_fake,
)
define(
    "aggregate",
    "mmd_backward(Tensor grad, Tensor x, Tensor y, Tensor? all_x, Tensor? all_y, int first_x, int first_y, "
    "str kernel, float[] widths, bool unbiased, int wanted) -> (Tensor, Tensor, Tensor, Tensor)",
    _mmd_backward_fake,
)
define(
    "aggregate",
    "dip(Tensor mean, Tensor? logvar, float lambda_od, float lambda_d) -> (Tensor, Tensor)",
    _dip_fake,
)
define(
    "aggregate",
    "dip_backward(Tensor grad, Tensor mean, Tensor? logvar, Tensor moments, float lambda_od, float lambda_d, "
    "int wanted) -> (Tensor, Tensor)",
    _dip_backward_fake,
)


# Autograd.


def _save_total_correlation(ctx, outputs, z, mean, logvar, *options):
    normalizers = outputs[3]
    ctx.mark_non_differentiable(normalizers)
    ctx.save_for_backward(z, mean, logvar, normalizers)
    ctx.options = options


def _total_correlation_vjp(ctx, *grads):
    wanted = wanted_bits(ctx.needs_input_grad[:3])
    if not wanted or all(g is None for g in grads[:3]):
        return (None,) * 6
    found = _total_correlation_backward(*grads[:3], *ctx.saved_tensors, *ctx.options, wanted)
    return *only_wanted(wanted, found), None, None, None


def _save_mmd(ctx, *inputs):
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _mmd_vjp(ctx, grad):
    wanted = wanted_bits(ctx.needs_input_grad[:4])
    if grad is None or not wanted:
        return (None,) * 9
    return *only_wanted(wanted, _mmd_backward(grad, *ctx.saved_tensors, *ctx.options, wanted)), *(None,) * 5


def _save_dip(ctx, outputs, mean, logvar, *factors):
    moments = outputs[1]
    ctx.mark_non_differentiable(moments)
    ctx.save_for_backward(mean, logvar, moments)
    ctx.factors = factors


def _dip_vjp(ctx, grad, _):
    wanted = wanted_bits(ctx.needs_input_grad[:2])
    if grad is None or not wanted:
        return (None,) * 4
    return *only_wanted(wanted, _dip_backward(grad, *ctx.saved_tensors, *ctx.factors, wanted)), None, None


_total_correlation = differentiate(
    "total_correlation", _save_total_correlation, _total_correlation_vjp, keeps_outputs=True
)
_mmd = differentiate("mmd", _save_mmd, _mmd_vjp)
_dip = differentiate("dip", _save_dip, _dip_vjp, keeps_outputs=True)
_total_correlation_backward = differentiate_backward("total_correlation_backward")
_mmd_backward = differentiate_backward("mmd_backward")
_dip_backward = differentiate_backward("dip_backward")
