"""A random call of every public op. A test names the op that has none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genmod.ops import adversarial, aggregate
from genmod.registry import Sample

from .draw import Draw, lay_out

CALLS: dict[str, Callable[[Draw], Sample]] = {}

REDUCTIONS = ("batchmean", "none", "per_dim", "batch", "mean", "sum")
ACTIVATIONS = ("identity", "silu", "gelu", "tanh", "sigmoid", "relu", "leaky_relu")


def _call(generate: Callable[[Draw], Sample]) -> Callable[[Draw], Sample]:
    CALLS[generate.__name__.removeprefix("_")] = generate
    return generate


def _sample(*args: Any, **kwargs: Any) -> Sample:
    while args and args[-1] is None:
        args = args[:-1]
    return Sample("random", args, {k: v for k, v in kwargs.items() if v is not None})


# Family gaussian.


def _gaussian(draw: Draw, shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """Mean and log-variance of a shape, or both packed."""
    if len(shape) > 1 and draw.integer(0, 2) == 1:
        batch, channels, *space = shape
        return draw.tensor(batch, 2 * channels, *space), None
    if len(shape) > 1 and draw.integer(0, 4) == 1:
        batch, channels, *space = shape
        mean, logvar = draw.tensor(batch, 2 * channels, *space).chunk(2, 1)
        return mean, logvar
    return draw.tensor(*shape), draw.tensor(*shape, scale=draw.one(1.0, 0.01, 3.0, 20.0))


def _noise(draw: Draw, shape: tuple[int, ...]) -> dict[str, Any]:
    if draw.integer(0, 1):
        return {"noise": draw.tensor(*shape, values="normal")}
    return {"generator": torch.Generator().manual_seed(draw.integer(0, (1 << 63) - 1))}


def _kl_options(draw: Draw) -> dict[str, Any]:
    return {
        "free_bits": draw.one(0.0, 0.0, 0.1, 2.0),
        "reduction": draw.one(*REDUCTIONS),
        "clamp": draw.one("none", "hard", "soft"),
    }


@_call
def _clamp_logvar(draw: Draw) -> Sample:
    logvar = draw.tensor(*draw.shape(), scale=draw.one(1.0, 25.0))
    return _sample(logvar, clamp=draw.one("none", "hard", "soft"))


@_call
def _reparameterize(draw: Draw) -> Sample:
    shape = draw.shape()
    return _sample(*_gaussian(draw, shape), **_noise(draw, shape), clamp=draw.one("none", "hard", "soft"))


@_call
def _gaussian_kl(draw: Draw) -> Sample:
    shape = draw.shape()
    first = _gaussian(draw, shape)
    if draw.integer(0, 1):
        return Sample("random", (*first, *_gaussian(draw, shape)), _kl_options(draw))
    return _sample(*first, **_kl_options(draw))


@_call
def _sample_kl(draw: Draw) -> Sample:
    shape = draw.shape()
    return _sample(*_gaussian(draw, shape), **_noise(draw, shape), **_kl_options(draw))


# Family reconstruction.


def _broadcast(draw: Draw, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to another."""
    return tuple(draw.one(s, s, 1) for s in shape)[draw.one(0, 0, min(1, len(shape) - 1)) :]


def _weights(draw: Draw, shape: tuple[int, ...]) -> dict[str, Any]:
    options: dict[str, Any] = {"reduction": draw.one(*REDUCTIONS)}
    if draw.integer(0, 3) == 1:
        options["weight"] = draw.tensor(*_broadcast(draw, shape), values="normal").abs()
    if draw.integer(0, 3) == 1:
        options["mask"] = draw.tensor(*_broadcast(draw, shape), values="normal") > -0.5
    return options


def _target(draw: Draw, shape: tuple[int, ...], convert: Callable[[Tensor], Tensor]) -> Tensor:
    dtype = draw.one(draw.dtype, draw.dtype, torch.float32, torch.bfloat16)
    values = draw.values if convert is _unchanged else "normal"
    target = convert(draw.tensor(*shape, dtype=dtype, layout="contiguous", values=values).double()).to(dtype)
    return lay_out(draw, target, draw.one("contiguous", "channels_last", "slice", "gaps", "permuted", "expanded"))


def _unchanged(x: Tensor) -> Tensor:
    return x


def _pixels(bins: int) -> Callable[[Tensor], Tensor]:
    return lambda x: ((x.clamp(-1, 1) + 1) * (bins - 1) / 2).round() * 2 / (bins - 1) - 1


def _plain_loss(convert: Callable[[Tensor], Tensor] = _unchanged) -> Callable[[Draw], Sample]:
    def generate(draw: Draw) -> Sample:
        shape = draw.shape()
        return _sample(draw.tensor(*shape), _target(draw, shape, convert), **_weights(draw, shape))

    return generate


def _scaled_loss(
    scale: str, fixed: str, bound: str, convert: Callable[[Draw], Callable[[Tensor], Tensor]], **given: Any
) -> Callable[[Draw], Sample]:
    """Of a loss whose log-scale is an argument `scale`, packed, one number, or known as `fixed`."""

    def generate(draw: Draw) -> Sample:
        shape = draw.shape()
        options = _weights(draw, shape)
        how = draw.one("packed", "per element", "one", "fixed", "per channel")
        output = draw.tensor(*shape)
        low = {} if draw.integer(0, 1) else {bound: draw.one(-1.0, -5.0)}
        if how == "packed" and len(shape) > 1:
            batch, channels, *space = shape
            output = draw.tensor(batch, 2 * channels, *space)
        elif how == "per channel" and len(shape) > 1:
            options[scale] = draw.tensor(shape[1], *[1] * (len(shape) - 2))
        elif how in ("one", "fixed") or len(shape) == 1:
            one = draw.number(-3, 3)
            options |= {fixed: math.exp(one)} if how == "fixed" else {scale: torch.tensor(one, dtype=draw.dtype)}
        else:
            options[scale] = draw.tensor(*shape)
        return _sample(output, _target(draw, shape, convert(draw)), **options, **low)

    return generate


CALLS["mse"] = CALLS["l1"] = _plain_loss()
CALLS["bernoulli_nll"] = _plain_loss(torch.sigmoid)
CALLS["gaussian_nll"] = _scaled_loss("logvar", "sigma", "min_logvar", lambda draw: _unchanged)
CALLS["laplace_nll"] = _scaled_loss("log_scale", "scale", "min_log_scale", lambda draw: _unchanged)
CALLS["discretized_logistic_nll"] = _scaled_loss("log_scale", "scale", "min_log_scale", lambda draw: _pixels(256))


# Family logistic_mixture.


def _mixture(draw: Draw) -> tuple[Tensor, int, tuple[int, ...]]:
    """Parameters, channels of the image, and [B, H, W]."""
    channels = draw.one(1, 3)
    batch, height, width = draw.integer(0, 3), draw.integer(0, 4), draw.one(1, 2, 3, 5, 67)
    components = draw.integer(1, 4)
    output = draw.tensor(batch, components * (10 if channels == 3 else 3), height, width, scale=draw.one(1.0, 0.3))
    return output, channels, (batch, height, width)


@_call
def _logistic_mixture_nll(draw: Draw) -> Sample:
    output, channels, (batch, *space) = _mixture(draw)
    bins = draw.one(256, 2, 17)
    target = _target(draw, (batch, channels, *space), _pixels(bins))
    return _sample(output, target, **_weights(draw, (batch, *space)), bins=bins)


@_call
def _logistic_mixture_sample(draw: Draw) -> Sample:
    output, channels, _ = _mixture(draw)
    generator = torch.Generator().manual_seed(draw.integer(0, (1 << 63) - 1))
    bins, temperature = draw.one(256, 2, 17), draw.one(1.0, 0.5)
    return _sample(output, channels=channels, generator=generator, bins=bins, temperature=temperature)


# Family aggregate.


@_call
def _total_correlation(draw: Draw) -> Sample:
    batch, dims = draw.one(2, 3, 4, 5, 7, 9, 65, 130), draw.integer(0, 7)
    # Variances that float32 holds: where densities leave its range, the kernel has a floor, the reference infinities.
    values = "normal" if draw.values in ("large", "mixed") else draw.values
    mean, logvar = draw.tensor(batch, dims), draw.tensor(batch, dims, scale=draw.one(0.5, 2.0), values=values)
    size = batch + draw.one(0, 1, 100, 10**6)
    return _sample(draw.tensor(batch, dims), mean, logvar, dataset_size=size, estimator=draw.one(*aggregate.ESTIMATORS))


@_call
def _mmd(draw: Draw) -> Sample:
    dims, unbiased = draw.integer(0, 7), draw.one(False, True)
    points = [draw.one(2, 3, 5, 8, 66) - (0 if unbiased else draw.integer(0, 1)) for _ in range(2)]
    x, y = (draw.tensor(n, dims, scale=draw.one(1.0, 10.0)) for n in points)
    scales = draw.one((1.0,), (0.1, 2.0), (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0))
    return _sample(x, y, kernel=draw.one(*aggregate.KERNELS), scales=scales, unbiased=unbiased)


@_call
def _dip(draw: Draw) -> Sample:
    batch, dims = draw.one((draw.integer(1, 9), draw.integer(0, 6)), (66, 3), (4, 35), (2, 67))
    kind = draw.one(*aggregate.DIP_KINDS)
    logvar = draw.tensor(batch, dims) if kind == "ii" or draw.integer(0, 1) else None
    return _sample(draw.tensor(batch, dims), logvar, kind=kind, lambda_od=draw.one(10.0, 0.0, 0.5))


# Family norm_act.


def _activation(draw: Draw) -> dict[str, Any]:
    name = draw.one(*ACTIVATIONS)
    return (
        {"activation": name, "negative_slope": draw.one(0.01, 0.2, 0.0)}
        if name == "leaky_relu"
        else {"activation": name}
    )


def _parameter(draw: Draw, *shape: int, shift: float = 0.0) -> Tensor | None:
    if draw.integer(0, 3) == 1:
        return None
    dtype = torch.float32 if draw.half and draw.integer(0, 1) else draw.dtype
    return draw.tensor(*shape, scale=0.5, shift=shift, values="normal", dtype=dtype)


def _image(draw: Draw) -> tuple[int, ...]:
    """[N, C, ...] of rank 2 to 5, with a space that now and then is longer than a tile."""
    batch, channels, *space = draw.shape(2, 5)
    return (batch, max(channels, 1), *space)


@_call
def _bias_act(draw: Draw) -> Sample:
    shape = _image(draw)
    bounds = {"gain": draw.one(1.0, 2**0.5, -1.0), "clamp": draw.one(None, 0.5, 256.0)}
    return _sample(draw.tensor(*shape), _parameter(draw, shape[1]), **_activation(draw), **bounds)


@_call
def _group_norm_act(draw: Draw) -> Sample:
    shape = _image(draw)
    groups = draw.one(*(g for g in range(1, shape[1] + 1) if shape[1] % g == 0))
    x = draw.tensor(*shape, shift=draw.one(0.0, 3.0))
    modulation = {n: _parameter(draw, *shape[:2]) for n in ("scale", "shift") if draw.integer(0, 1)}
    residual = draw.maybe(draw.tensor(*shape))
    affine = _parameter(draw, shape[1], shift=1.0), _parameter(draw, shape[1])
    eps = draw.one(1e-5, 1e-3)
    return Sample(
        "random",
        (x, groups, *affine, eps),
        {k: v for k, v in {**modulation, "residual": residual}.items() if v is not None} | _activation(draw),
    )


def _running(draw: Draw, channels: int) -> tuple[Tensor, Tensor]:
    dtype = torch.float32 if draw.half and draw.integer(0, 1) else draw.dtype
    return (
        draw.tensor(channels, values="normal", dtype=dtype, layout="contiguous"),
        draw.tensor(channels, values="normal", dtype=dtype, layout="contiguous").square() + 0.5,
    )


@_call
def _batch_norm_act(draw: Draw) -> Sample:
    batch, *rest = _image(draw)
    training = draw.one(False, True)
    shape = (batch + 2 if training and batch < 2 else batch, *rest)
    x = draw.tensor(*shape, shift=draw.one(0.0, 3.0))
    running = _running(draw, shape[1]) if not training or draw.integer(0, 1) else (None, None)
    affine = _parameter(draw, shape[1], shift=1.0), _parameter(draw, shape[1])
    residual = {} if draw.integer(0, 2) else {"residual": draw.tensor(*shape)}
    return Sample("random", (x, *running, *affine, training, draw.one(0.1, 1.0)), {**residual, **_activation(draw)})


# Family upsample_conv.


def _groups(draw: Draw) -> tuple[int, int, int]:
    """Groups, and input and output channels that they divide."""
    groups = draw.one(1, 1, 2, 3)
    return groups, groups * draw.integer(1, 4), groups * draw.integer(1, 4)


@_call
def _upsample_conv2d(draw: Draw) -> Sample:
    groups, inputs, outputs = _groups(draw)
    x = draw.tensor(draw.integer(0, 3), inputs, draw.integer(1, 6), draw.one(1, 2, 3, 5, 37))
    weight = draw.tensor(outputs, inputs // groups, 3, 3, scale=0.3, values="normal")
    bias = draw.maybe(draw.tensor(outputs, values="normal"))
    return _sample(x, weight, bias, groups=groups, **_activation(draw))


@_call
def _conv_transpose2d_norm_act(draw: Draw) -> Sample:
    groups, inputs, outputs = _groups(draw)
    training = draw.one(False, True)
    x = draw.tensor(draw.integer(1 if training else 0, 3) + training, inputs, draw.integer(1, 4), draw.integer(1, 4))
    kernel, stride = draw.one((4, 2), (3, 1), (2, 2))
    weight = draw.tensor(inputs, outputs // groups, kernel, kernel, scale=0.3, values="normal")
    running = _running(draw, outputs) if not training or draw.integer(0, 1) else (None, None)
    affine = _parameter(draw, outputs, shift=1.0), _parameter(draw, outputs)
    bias = draw.maybe(draw.tensor(outputs, values="normal"))
    activation = _activation(draw)
    if training and draw.values == "zero":  # normalised to zero but for rounding, where slopes of ReLUs are either
        activation = {"activation": "silu"}
    options = {"stride": stride, "padding": draw.one(0, 1) if kernel > 2 else 0, "groups": groups, **activation}
    return Sample(
        "random", (x, weight, *running, *affine, training), options | ({} if bias is None else {"bias": bias})
    )


# Family conv3x3.


@_call
def _conv3x3(draw: Draw) -> Sample:
    inputs, outputs = (draw.one(1, 2, 3, 16, 32) for _ in range(2))
    x = draw.tensor(draw.integer(0, 3), inputs, draw.integer(1, 6), draw.one(1, 2, 3, 5, 37))
    weight = draw.tensor(outputs, inputs, 3, 3, scale=0.3, values="normal")
    return _sample(x, weight, draw.maybe(draw.tensor(outputs, values="normal")))


# Family conv4x4.


@_call
def _conv4x4(draw: Draw) -> Sample:
    inputs, outputs = (draw.one(1, 2, 3, 16, 32) for _ in range(2))
    transposed, (height, width) = draw.one(False, True), (draw.integer(1, 5), draw.one(1, 2, 3, 5, 19))
    scale = 1 if transposed else 2
    x = draw.tensor(draw.integer(0, 3), inputs, scale * height, scale * width)
    pair = (inputs, outputs) if transposed else (outputs, inputs)
    weight = draw.tensor(*pair, 4, 4, scale=0.3, values="normal")
    return _sample(x, weight, draw.maybe(draw.tensor(outputs, values="normal")), transposed=transposed or None)


# Families critic and adversarial.


@_call
def _critic_leaky_relu(draw: Draw) -> Sample:
    return _sample(draw.tensor(*draw.shape()), draw.one(0.2, 0.0, 1.5, -0.3))


@_call
def _critic_conv2d(draw: Draw) -> Sample:
    groups, inputs, outputs = _groups(draw)
    kernel, padding, dilation = draw.one(3, 1, 2), draw.integer(0, 2), draw.one(1, 1, 2)
    size = dilation * (kernel - 1) + 1
    x = draw.tensor(draw.integer(0, 3), inputs, size + draw.integer(0, 4), size + draw.integer(0, 4))
    weight = draw.tensor(outputs, inputs // groups, kernel, kernel, scale=0.3, values="normal")
    bias = draw.maybe(draw.tensor(outputs, values="normal"))
    return Sample("random", (x, weight, bias, draw.one(1, 2), padding, dilation, groups), {})


def _logits(draw: Draw) -> dict[str, Tensor]:
    shape = draw.shape()
    return {"real": draw.tensor(*shape), "fake": draw.tensor(*shape)}


@_call
def _critic_loss(draw: Draw) -> Sample:
    pair, kind, reduction = _logits(draw), draw.one(*adversarial.KINDS), draw.one(*adversarial.REDUCTIONS)
    if kind != "relativistic" and reduction != "none" and draw.integer(0, 1):
        pair["fake"] = draw.tensor(*draw.shape())
    return _sample(**pair, kind=kind, reduction=reduction)


@_call
def _generator_loss(draw: Draw) -> Sample:
    pair, kind = _logits(draw), draw.one(*adversarial.KINDS)
    real = pair["real"] if kind == "relativistic" else None
    return _sample(fake=pair["fake"], real=real, kind=kind, reduction=draw.one(*adversarial.REDUCTIONS))


@_call
def _lecam(draw: Draw) -> Sample:
    dtype = torch.float64 if draw.dtype == torch.float64 else torch.float32
    averages = {n: draw.tensor(1, values="normal", dtype=dtype)[0] for n in ("real_average", "fake_average")}
    return _sample(**_logits(draw), **averages)
