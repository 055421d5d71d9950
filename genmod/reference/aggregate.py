r"""The aggregate posterior: total correlation, maximum mean discrepancy, and disentangled inferred priors.

**Total correlation** (Chen et al., *Isolating sources of disentanglement in variational autoencoders*, 2018). With
:math:`t_{ijd} = \log q(z_{id} \mid x_j)` and log-weights :math:`w_{ij}`

.. math::
    \log q(z_i) = \operatorname{logsumexp}_j\Big(w_{ij} + \sum_d t_{ijd}\Big), \qquad
    \log q(z_{id}) = \operatorname{logsumexp}_j\left(w_{ij} + t_{ijd}\right)

and the KL of a batch of B out of N samples falls into three means over i:

.. math::
    \sum_d t_{iid} - \log p(z_i) =
    \Big[\sum_d t_{iid} - \log q(z_i)\Big] + \Big[\log q(z_i) - \sum_d \log q(z_{id})\Big]
    + \Big[\sum_d \log q(z_{id}) - \log p(z_i)\Big]

The weights are a function of (i, j). Weighted sampling (`mws`): 1/(NB). Stratified sampling (`mss`), with M = B - 1 for
the others in the batch (their appendix C.2): 1/N for the sample's own posterior, j = i; (N - M)/(NM) for one of the
others, here j = i + 1, cyclically; 1/M for the rest. They sum to one over j, and their expectation over batches is 1/N
for every sample of the dataset.

**MMD** (Gretton et al., *A kernel two-sample test*, 2012), squared, with the kernel summed over widths C:
:math:`C / (C + \lVert x - y\rVert^2)` (`imq`; Tolstikhin et al., *Wasserstein auto-encoders*, 2018) or
:math:`e^{-\lVert x - y\rVert^2 / C}` (`rbf`).

**DIP-VAE** (Kumar et al., *Variational inference of disentangled latent concepts from unlabeled observations*, 2018).
With X the posteriors' means less their average over the batch, and :math:`v = e^\ell` their variances,

.. math::
    \lambda_{od} \sum_{i \ne j} C_{ij}^2 + \lambda_d \sum_i (C_{ii} - 1)^2, \qquad
    C = \tfrac1B X^\top X \quad\text{or}\quad C = \tfrac1B \big(X^\top X + \sum_n \operatorname{diag} v_n\big)

Arithmetic is in float32, in float64 for float64 inputs. Losses have that type, gradients the inputs'. Rows are taken a
few at a time, and what autograd would keep of their rows x B x D values is computed again when it is needed: the memory
is O(BD), for second derivatives too. (Not under `torch.func`, which has no way to say so.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from genmod.reference.precision import widen, without_autocast

#: Elements of one rows x columns x D intermediate.
_CHUNK = 1 << 20


def _widen_given(t: Tensor | None) -> Tensor | None:
    return None if t is None else widen(t)


def _over_chunks(function: Callable[..., Any], rows: Tensor, columns: Tensor, *inputs: Any) -> list[Any]:
    """`function(chunk, rows, columns, *inputs)` for each slice of rows. Of several, autograd keeps the inputs alone."""
    step = max(1, _CHUNK // max(1, columns.numel()))
    chunks = [slice(first, min(first + step, rows.shape[0])) for first in range(0, rows.shape[0], step)]
    keeps = len(chunks) == 1 or not torch.is_grad_enabled() or torch.compiler.is_compiling()
    if keeps or torch._C._are_functorch_transforms_active():
        return [function(chunk, rows, columns, *inputs) for chunk in chunks]
    again = functools.partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
    return [again(chunk, rows, columns, *inputs) for chunk in chunks]


# Total correlation.


def log_weights(batch: int, dataset_size: int, estimator: str) -> tuple[float, float, float]:
    """Log-weight of a sample's own posterior, of its successor's in the batch, and of every other one."""
    if estimator == "mws":
        return (-math.log(dataset_size * batch),) * 3
    others = batch - 1
    successor = math.log((dataset_size - others) / (dataset_size * others))
    return -math.log(dataset_size), successor, -math.log(others)


def _log_weight_rows(
    rows: slice, columns: int, first_row: int, weights: tuple[float, float, float], like: Tensor
) -> Tensor:
    own, successor, rest = weights
    w = like.new_full((rows.stop - rows.start, columns), rest)
    w.diagonal(first_row + rows.start + 1).fill_(successor)
    if first_row + rows.stop == columns:
        w[-1, 0] = successor  # the first follows the last
    w.diagonal(first_row + rows.start).fill_(own)
    return w


def _log_density(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mean).square() * (-logvar).exp())


def total_correlation(
    z: Tensor, mean: Tensor, logvar: Tensor, dataset_size: int, estimator: str, first_row: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mutual information, total correlation and dimension-wise KL, and what they are made of.

    `z` may be some of the batch's rows: row i of it was drawn from column `first_row + i` of `mean` and `logvar`, and
    the terms are that part of the mean over the batch. The fourth output, `[2, R, D + 1]`, is what makes weights that
    sum to one of the terms' powers of two, in a kernel's backward: of every marginal and, last, of the joint, the
    largest log2-density and 1 / sum_j 2^(log2 of term j - the largest), where weights are relative to that of most
    pairs. Two numbers, because the rounding of one log can be larger than what the terms differ by.
    """
    z, mean, logvar = widen(z), widen(mean), widen(logvar)
    batch, dims = mean.shape
    weights = log_weights(batch, dataset_size, estimator)

    def logs_of(chunk: slice, z: Tensor, mean: Tensor, logvar: Tensor) -> tuple[Tensor, ...]:
        t = _log_density(z[chunk, None], mean, logvar)
        w = _log_weight_rows(chunk, batch, first_row, weights, z)
        densities = t.sum(2)
        joint = torch.logsumexp(densities + w, 1, keepdim=True)
        log = torch.cat((torch.logsumexp(t + w[:, :, None], 1), joint), 1)
        top = torch.cat((t.detach().amax(1), densities.detach().amax(1, keepdim=True)), 1)
        # Of the same sum, so that its rounding is not in their difference.
        return log, top, densities.diagonal(first_row + chunk.start)

    log, top, posterior = map(torch.cat, zip(*_over_chunks(logs_of, z, mean, logvar)))
    joint, marginals = log[:, dims], log[:, :dims].sum(1)
    prior = -0.5 * (math.log(2 * math.pi) + z.square()).sum(1)
    terms = posterior - joint, joint - marginals, marginals - prior
    mutual_information, correlation, dimension_kl = (t.sum() / batch for t in terms)
    normalizers = torch.stack((top / math.log(2), (top + weights[2] - log.detach()).exp()))
    return mutual_information, correlation, dimension_kl, normalizers


# With a, p, c the incoming gradients of log q(z_i), sum_d log q(z_id) and sum_d t_iid, the gradient of t_ijd is
#     W_ijd = a Q_ij + p P_ijd + c [i = j],    Q_ij = softmax_j of the joint's terms, P_ijd of the marginals';
# with delta = z_id - mean_jd and v = e^-logvar_jd
#     d z_id = -sum_j W delta v - z_id d prior,   d mean_jd = sum_i W delta v,   d logvar_jd = sum_i W/2 (delta^2 v - 1)


def total_correlation_backward(
    grad_mutual_information: Tensor | None,
    grad_total_correlation: Tensor | None,
    grad_dimension_kl: Tensor | None,
    z: Tensor,
    mean: Tensor,
    logvar: Tensor,
    normalizers: Tensor,
    dataset_size: int,
    estimator: str,
    first_row: int,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`total_correlation`. Bit i of `wanted` asks for gradient i.

    `normalizers`, which kernels take from the forward pass, are computed again here: a second derivative must see
    through them.
    """
    inputs = (z, mean, logvar)
    z, mean, logvar = widen(z), widen(mean), widen(logvar)
    rows, batch = z.shape[0], mean.shape[0]
    grads = (grad_mutual_information, grad_total_correlation, grad_dimension_kl)
    g_mi, g_tc, g_kl = (z.new_zeros(()) if g is None else g / batch for g in grads)
    to_joint, to_marginals, to_own = g_tc - g_mi, g_kl - g_tc, g_mi
    weights = log_weights(batch, dataset_size, estimator)

    own = slice(first_row, first_row + rows)
    delta, precision = z - mean[own], (-logvar[own]).exp()
    pull = to_own * delta * precision
    d_z, d_mean, d_logvar = g_kl * z - pull, pull, 0.5 * (pull * delta - to_own)
    if rows < batch:
        beside = (0, 0, first_row, batch - first_row - rows)
        d_mean, d_logvar = functional.pad(d_mean, beside), functional.pad(d_logvar, beside)

    def pulls_of(
        chunk: slice, z: Tensor, mean: Tensor, logvar: Tensor, to_joint: Tensor, to_marginals: Tensor
    ) -> tuple[Tensor, ...]:
        delta = z[chunk, None] - mean
        scaled = delta * (-logvar).exp()
        t = -0.5 * (math.log(2 * math.pi) + logvar + delta * scaled)
        w = _log_weight_rows(chunk, batch, first_row, weights, z)
        of_joint, of_marginals = torch.softmax(t.sum(2) + w, 1), torch.softmax(t + w[:, :, None], 1)
        share = to_joint * of_joint[:, :, None] + to_marginals * of_marginals
        pull = share * scaled
        return pull.sum(1), pull.sum(0), 0.5 * (pull * delta - share).sum(0)

    rest = []
    for of_rows, of_means, of_logvars in _over_chunks(pulls_of, z, mean, logvar, to_joint, to_marginals):
        rest.append(of_rows)
        d_mean, d_logvar = d_mean + of_means, d_logvar + of_logvars
    d_z, d_mean, d_logvar = _chosen(inputs, (d_z - torch.cat(rest), d_mean, d_logvar), wanted)
    return d_z, d_mean, d_logvar


def _chosen(inputs: tuple[Tensor | None, ...], grads: Sequence[Tensor], wanted: int) -> tuple[Tensor, ...]:
    """Gradients in the inputs' dtype; an empty tensor for one that is not wanted, or whose input is not given."""
    like = next(t for t in inputs if t is not None)
    return tuple(
        g.to(like.dtype).contiguous() if t is not None and wanted >> i & 1 else like.new_empty(0)
        for i, (t, g) in enumerate(zip(inputs, grads))
    )


# Maximum mean discrepancy.


def _total(tensors: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, tensors)


def _kernel(squares: Tensor, kernel: str, widths: list[float]) -> Tensor:
    if kernel == "imq":
        return _total(c / (c + squares) for c in widths)
    return _total((-squares / c).exp() for c in widths)


def _kernel_slope(squares: Tensor, kernel: str, widths: list[float]) -> Tensor:
    """The derivative of the kernel by the squared distance."""
    if kernel == "imq":
        return -_total(c / (c + squares).square() for c in widths)
    return -_total((-squares / c).exp() / c for c in widths)


def _pairs(chunk: slice, first_row: int | None, columns: int, like: Tensor) -> Tensor:
    """1 for the pairs that count and 0 for a row paired with itself, column `first_row + i`, if that is given."""
    if first_row is None:
        return like.new_ones(())
    i = torch.arange(first_row + chunk.start, first_row + chunk.stop, device=like.device)[:, None]
    return (i != torch.arange(columns, device=like.device)).to(like.dtype)


def _terms(
    x: Tensor, y: Tensor, all_x: Tensor | None, all_y: Tensor | None, first_x: int, first_y: int, unbiased: bool
) -> Iterator[tuple[Tensor, Tensor, float, int | None]]:
    """Rows, columns, factor and, where the diagonal does not count, first row of each of the three sums."""
    columns_x, columns_y = x if all_x is None else all_x, y if all_y is None else all_y
    n, m = columns_x.shape[0], columns_y.shape[0]
    yield x, columns_x, 1 / (n * (n - 1) if unbiased else n * n), first_x if unbiased else None
    yield y, columns_y, 1 / (m * (m - 1) if unbiased else m * m), first_y if unbiased else None
    yield x, columns_y, -2 / (n * m), None


def mmd(
    x: Tensor,
    y: Tensor,
    all_x: Tensor | None,
    all_y: Tensor | None,
    first_x: int,
    first_y: int,
    kernel: str,
    widths: list[float],
    unbiased: bool,
) -> Tensor:
    """The squared MMD of two samples.

    With `all_x` and `all_y` given, `x` and `y` are some of their rows, beginning at `first_x` and `first_y`, and the
    result is those rows' share of it.
    """
    x, y, all_x, all_y = widen(x), widen(y), _widen_given(all_x), _widen_given(all_y)
    total = x.new_zeros(())

    def sum_of(chunk: slice, rows: Tensor, columns: Tensor, first: int | None) -> Tensor:
        squares = (rows[chunk, None] - columns).square().sum(2)
        pairs = _pairs(chunk, first, columns.shape[0], rows)
        return (pairs * _kernel(squares, kernel, widths)).sum()

    for rows, columns, factor, first in _terms(x, y, all_x, all_y, first_x, first_y, unbiased):
        for of_chunk in _over_chunks(sum_of, rows, columns, first):
            total = total + factor * of_chunk
    return total


def mmd_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    all_x: Tensor | None,
    all_y: Tensor | None,
    first_x: int,
    first_y: int,
    kernel: str,
    widths: list[float],
    unbiased: bool,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`mmd`: a pair pulls its row by 2 k'(d^2) (x - y), and its column the other way."""
    inputs = (x, y, all_x, all_y)
    x, y, all_x, all_y = widen(x), widen(y), _widen_given(all_x), _widen_given(all_y)
    # Of what is not given the gradient is never asked for.
    grads = [torch.zeros_like(x if t is None else t) for t in (x, y, all_x, all_y)]
    # Which gradients the rows and the columns of each of the three sums belong to.
    column_x, column_y = 0 if all_x is None else 2, 1 if all_y is None else 3
    roles = ((0, column_x), (1, column_y), (0, column_y))
    terms = _terms(x, y, all_x, all_y, first_x, first_y, unbiased)

    def pulls_of(chunk: slice, rows: Tensor, columns: Tensor, factor: float, grad: Tensor) -> tuple[Tensor, Tensor]:
        delta = rows[chunk, None] - columns  # zero for a row paired with itself, which so never pulls
        slope = _kernel_slope(delta.square().sum(2), kernel, widths)
        pull = (2 * factor) * (grad * slope)[:, :, None] * delta
        return pull.sum(1), pull.sum(0)

    for (row, column), (rows, columns, factor, _) in zip(roles, terms):
        pulls = []
        for of_rows, of_columns in _over_chunks(pulls_of, rows, columns, factor, grad):
            pulls.append(of_rows)
            grads[column] = grads[column] - of_columns
        grads[row] = grads[row] + torch.cat(pulls)
    d_x, d_y, d_all_x, d_all_y = _chosen(inputs, grads, wanted)
    return d_x, d_y, d_all_x, d_all_y


# Disentangled inferred priors.


def _moments(mean: Tensor, logvar: Tensor | None, batch: int, total: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """The means less their average, that average, and the covariance; `total` sums over all parts of the batch."""
    average = total(mean.sum(0)) / batch
    centred = mean - average
    with without_autocast(mean):
        covariance = total(centred.t() @ centred) / batch
    if logvar is not None:
        covariance = covariance + torch.diag(total(widen(logvar).exp().sum(0)) / batch)
    return centred, average, covariance


def _penalty(covariance: Tensor, lambda_od: float, lambda_d: float) -> Tensor:
    diagonal = covariance.diagonal()
    off_diagonal = (covariance - torch.diag(diagonal)).square().sum()
    return lambda_od * off_diagonal + lambda_d * (diagonal - 1).square().sum()


def dip_over(
    mean: Tensor,
    logvar: Tensor | None,
    lambda_od: float,
    lambda_d: float,
    batch: int,
    total: Callable[[Tensor], Tensor],
) -> Tensor:
    """The penalty of a batch of `batch` samples, of which `mean` and `logvar` are a part; `total` sums over all."""
    return _penalty(_moments(widen(mean), logvar, batch, total)[2], lambda_od, lambda_d)


def dip(mean: Tensor, logvar: Tensor | None, lambda_od: float, lambda_d: float) -> tuple[Tensor, Tensor]:
    """The penalty on the covariance of the means, or of the aggregate posterior where `logvar` is given; and what a
    kernel's backward needs, `[D + 1, D]`: the covariance and, last, the average of the means."""
    _, average, covariance = _moments(widen(mean), logvar, mean.shape[0], lambda t: t)
    return _penalty(covariance, lambda_od, lambda_d), torch.cat((covariance, average[None])).detach()


def dip_backward(
    grad: Tensor,
    mean: Tensor,
    logvar: Tensor | None,
    moments: Tensor,
    lambda_od: float,
    lambda_d: float,
    wanted: int,
) -> tuple[Tensor, Tensor]:
    r"""Gradients of :func:`dip`: with :math:`S = \partial L / \partial C`, that of the means is :math:`2 X S / B`,
    whose columns sum to zero as those of X do, and that of the log-variances :math:`S_{ii} e^\ell / B`.

    `moments`, which kernels take from the forward pass, are computed again here: a second derivative must see through
    them.
    """
    batch = mean.shape[0]
    centred, _, covariance = _moments(widen(mean), logvar, batch, lambda t: t)
    diagonal = (2 * lambda_d) * (covariance.diagonal() - 1)
    slope = (2 * lambda_od) * (covariance - torch.diag(covariance.diagonal())) + torch.diag(diagonal)
    with without_autocast(mean):
        d_mean = (2 / batch) * grad * (centred @ slope)
    d_logvar = grad * diagonal / batch * widen(mean if logvar is None else logvar).exp()
    d_mean, d_logvar = _chosen((mean, logvar), (d_mean, d_logvar), wanted)
    return d_mean, d_logvar
