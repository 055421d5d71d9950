"""Specs of the family `norm_act`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import ops
from genmod.registry import BadCall, OpSpec, Sample, Workload, register

# The ops as people write them.


def _eager_activation(name: str, x: Tensor, negative_slope: float) -> Tensor:
    if name == "leaky_relu":
        return F.leaky_relu(x, negative_slope)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": F.relu,
        "silu": F.silu,
        "gelu": F.gelu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }
    return x if name == "identity" else functions[name](x)


def _against(p: Tensor, x: Tensor) -> Tensor:
    return p.reshape(-1, x.shape[1], *[1] * (x.dim() - 2))


def eager_group_norm_act(
    x,
    num_groups,
    weight=None,
    bias=None,
    eps=1e-5,
    *,
    activation="silu",
    negative_slope=0.01,
    residual=None,
    scale=None,
    shift=None,
    x_bias=None,
    return_sum=False,
):
    """`act(group_norm(x + x_bias + residual) * (1 + scale) + shift)`."""
    total = x if x_bias is None else x + _against(x_bias, x).to(x.dtype)
    total = total if residual is None else total + residual
    if weight is None and bias is not None:  # torch's own backward fails there
        weight = torch.ones_like(bias)
    if x.is_cuda:  # where torch takes no float32 parameters beside half precision
        weight, bias = (None if p is None else p.to(x.dtype) for p in (weight, bias))
    y = torch.group_norm(total, num_groups, weight, bias, eps)  # F.group_norm refuses groups of one element
    if scale is not None:
        y = y * (1 + _against(scale, y))
    if shift is not None:
        y = y + _against(shift, y)
    y = _eager_activation(activation, y, negative_slope)
    return (y, total) if residual is not None or return_sum else y


def eager_batch_norm_act(
    x,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
    *,
    activation="relu",
    negative_slope=0.01,
    residual=None,
):
    """`act(batch_norm(x + residual))`."""
    total = x if residual is None else x + residual
    y = F.batch_norm(total, running_mean, running_var, weight, bias, training, momentum, eps)
    y = _eager_activation(activation, y, negative_slope)
    return y if residual is None else (y, total)


def eager_bias_act(x, bias=None, *, activation, negative_slope=0.01, gain=1.0, clamp=None):
    """`clamp(gain * act(x + bias))`."""
    y = x if bias is None else x + _against(bias, x)
    y = _eager_activation(activation, y, negative_slope) * gain
    return y if clamp is None else y.clamp(-clamp, clamp)


# Samples.


def _drawn(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    def draw(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return (shift + scale * torch.randn(shape, dtype=torch.float64)).to(device, dtype)

    return draw


def _inputs(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every rank, layout and size; the channels of each are a multiple of two or one."""
    t = _drawn(device, dtype)
    last, last_3d = torch.channels_last, torch.channels_last_3d
    yield "rank 2", t(5, 8)
    yield "rank 3", t(2, 4, 5)
    yield "rank 4", t(2, 4, 3, 5)
    yield "rank 5", t(2, 4, 2, 3, 2)
    yield "channels_last", t(2, 6, 3, 4).contiguous(memory_format=last)
    yield "channels_last_3d", t(2, 4, 2, 3, 2).contiguous(memory_format=last_3d)
    yield "primes", t(3, 14, 5)
    yield "one sample", t(1, 6, 7, 3)
    yield "one channel", t(3, 1, 11)
    yield "empty batch", t(0, 4, 3, 3)
    yield "empty space", t(2, 4, 0, 3)
    yield "slice with offset", t(4, 7, 3, 4)[1:3, 2:6, :, 1:]
    yield "every other channel", t(2, 8, 3, 3).contiguous(memory_format=last)[:, ::2]
    yield "permuted", t(4, 5, 3).permute(2, 0, 1)
    yield "expanded", t(3, 4, 1, 5).expand(3, 4, 2, 5)
    # In float64 eager is the oracle, and is off by its own rounding of the mean.
    far = 3.0 if dtype == torch.float64 else 1000.0
    yield "far from zero", t(2, 4, 3, 7, shift=far)
    yield "far from zero, channels_last", t(2, 4, 5, 4, shift=-far).contiguous(memory_format=last)
    yield "several chunks", t(1, 4, 1500)
    yield "several chunks, channels_last", t(1, 4, 33, 47).contiguous(memory_format=last)


_ACTIVATIONS = ("silu", "relu", "leaky_relu", "gelu", "tanh", "sigmoid", "identity")


def _affine(x: Tensor, number: int, draw: Callable[..., Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias: mostly both, now and then one or none, now and then in float32 beside half precision."""
    channels = x.shape[1]
    weight = draw(channels, scale=0.5, shift=1.0) if number % 7 != 3 else None
    bias = draw(channels, scale=0.5) if number % 7 not in (3, 5) else None
    if x.dtype in (torch.bfloat16, torch.float16) and number % 2:
        weight, bias = (None if p is None else p.float() for p in (weight, bias))
    return weight, bias


def _options(number: int) -> dict[str, object]:
    activation = _ACTIVATIONS[number % len(_ACTIVATIONS)]
    return {"activation": activation} | ({"negative_slope": 0.2} if activation == "leaky_relu" else {})


def _group_norm_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    draw = _drawn(device, dtype)
    for number, (name, x) in enumerate(_inputs(device, dtype)):
        channels = x.shape[1]
        groups = (2 if channels % 2 == 0 else 1, channels, 1)[number % 3]
        if groups == channels and x.shape[2:].numel() < 2:
            groups = 1  # F.group_norm refuses groups of one element
        yield Sample(f"{name}, {groups} groups", (x, groups, *_affine(x, number, draw)), _options(number))
    for number, form in enumerate((torch.contiguous_format, torch.channels_last)):
        x, w, b = draw(2, 4, 3, 2).contiguous(memory_format=form), draw(4, shift=1.0), draw(4)
        scale, shift = draw(2, 8, scale=0.5).chunk(2, 1)
        residual = draw(2, 4, 3, 2)
        layout = ("contiguous", "channels_last")[number]
        yield Sample(f"residual, {layout}", (x, 2, w, b), {"residual": residual} | _options(number))
        yield Sample(
            f"everything, {layout}", (x, 2, w, b, 1e-3), {"residual": residual, "scale": scale, "shift": shift}
        )
        yield Sample(f"scale, {layout}", (x, 4, w), {"scale": scale} | _options(3 + number))
        yield Sample(f"shift, {layout}", (x, 1, None, b), {"shift": shift} | _options(5 + number))
        x_bias = {"x_bias": draw(4, scale=3.0)}
        yield Sample(f"bias of x, {layout}", (x, 2, w, b), x_bias | _options(number))
        yield Sample(f"bias of x, sum, {layout}", (x, 1, w, b), x_bias | {"return_sum": True})
        yield Sample(f"bias of x, residual, {layout}", (x, 2, w, b), x_bias | {"residual": residual, "scale": scale})


def _batch_norm_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    # In training without running statistics: they would be written to. tests/ops/test_norm_act.py looks at them.
    draw = _drawn(device, dtype)

    def running(x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        pair = draw(x.shape[1], scale=0.5), draw(x.shape[1]).square() + 0.5
        return (pair[0].float(), pair[1].float()) if number % 2 and dtype != torch.float64 else pair

    for number, (name, x) in enumerate(_inputs(device, dtype)):
        affine = _affine(x, number, draw)
        for training in (True, False) if number % 5 in (0, 4) else (number % 2 == 0,):
            statistics = (None, None) if training else running(x, number)
            label = f"{name}, {'training' if training else 'evaluation'}"
            yield Sample(label, (x, *statistics, *affine, training), _options(number + training))
    for training in (True, False):
        x, w, b = draw(2, 4, 3, 2).contiguous(memory_format=torch.channels_last), draw(4, shift=1.0), draw(4)
        statistics = (None, None) if training else running(x, 0)
        label = f"residual, {'training' if training else 'evaluation'}"
        yield Sample(label, (x, *statistics, w, b, training), {"residual": draw(2, 4, 3, 2)})


def _bias_act_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    draw = _drawn(device, dtype)
    for number, (name, x) in enumerate(_inputs(device, dtype)):
        _, bias = _affine(x, number, draw)
        yield Sample(name, (x, bias), _options(number) | ({"gain": 2**0.5} if number % 3 == 2 else {}))
    for number, activation in enumerate(_ACTIVATIONS):
        x = draw(2, 3, 4, 2).contiguous(memory_format=(torch.contiguous_format, torch.channels_last)[number % 2])
        options = {"activation": activation, "negative_slope": 0.2, "gain": 1.5, "clamp": 0.6}
        yield Sample(f"clamp, {activation}", (x, draw(3)), options)


# Calls that must raise.


def _bad_inputs(op: Callable[..., object], after: tuple[object, ...] = ()) -> Iterator[BadCall]:
    """`after`: what a call needs between x and weight."""
    x, w, half = torch.zeros(2, 4, 3), torch.ones(4), torch.ones(4, dtype=torch.half)
    given = {"activation": "relu"}
    yield BadCall("not a tensor", lambda: op([1.0], *after, **given), TypeError, ("x", "list", "tensor"))
    yield BadCall("integers", lambda: op(x.int(), *after, **given), TypeError, ("x", "int32", "float32"))
    yield BadCall("rank 1", lambda: op(torch.zeros(4), *after, **given), ValueError, ("x", "rank 1", "(4,)", "2 to 5"))
    yield BadCall("rank 6", lambda: op(torch.zeros(1, 2, 1, 1, 1, 1), *after, **given), ValueError, ("x", "rank 6"))
    yield BadCall("no channels", lambda: op(x[:, :0], *after, **given), ValueError, ("x", "(2, 0, 3)", "one channel"))
    yield BadCall("bias shape", lambda: op(x, *after, bias=w[:3], **given), ValueError, ("bias", "(3,)", "(4,)"))
    yield BadCall("bias dtype", lambda: op(x, *after, bias=half, **given), TypeError, ("bias", "float16", "float32"))
    yield BadCall("bias device", lambda: op(x, *after, bias=w.to("meta"), **given), ValueError, ("bias", "meta", "cpu"))
    yield BadCall("activation", lambda: op(x, *after, activation="swish"), ValueError, ("activation", "swish", "silu"))
    slope = {"activation": "leaky_relu", "negative_slope": "0.2"}
    yield BadCall("slope in words", lambda: op(x, *after, **slope), TypeError, ("negative_slope", "str", "number"))


def _bad_norms(op: Callable[..., object], after: tuple[object, ...]) -> Iterator[BadCall]:
    yield from _bad_inputs(op, after)
    x, w = torch.zeros(2, 4, 3), torch.ones(4)
    yield BadCall("weight shape", lambda: op(x, *after, w[None]), ValueError, ("weight", "(1, 4)", "(4,)", "(2, 4, 3)"))
    yield BadCall("weight dtype", lambda: op(x, *after, w.double()), TypeError, ("weight", "float64", "float32"))
    yield BadCall("weight not a tensor", lambda: op(x, *after, 1.0), TypeError, ("weight", "float", "tensor"))
    short = x[..., :2]
    yield BadCall("residual", lambda: op(x, *after, residual=short), ValueError, ("residual", "(2, 4, 2)", "(2, 4, 3)"))
    yield BadCall("eps of zero", lambda: op(x, *after, eps=0.0), ValueError, ("eps", "0.0", "> 0"))
    yield BadCall("NaN eps", lambda: op(x, *after, eps=float("nan")), ValueError, ("eps", "nan"))


def _bad_group_norm() -> Iterator[BadCall]:
    op: Any = ops.group_norm_act
    x = torch.zeros(2, 4, 3)
    yield from _bad_norms(op, (2,))
    yield BadCall("groups", lambda: op(x, 3), ValueError, ("num_groups", "3", "4 channels"))
    yield BadCall("no groups", lambda: op(x, 0), ValueError, ("num_groups", "0", "divisor"))
    yield BadCall("half a group", lambda: op(x, 2.0), TypeError, ("num_groups", "float", "integer"))
    yield BadCall("scale", lambda: op(x, 2, scale=x[:, :, :1]), ValueError, ("scale", "(2, 4, 1)", "(2, 4)"))
    yield BadCall("shift", lambda: op(x, 2, shift=x[0, :, 0]), ValueError, ("shift", "(4,)", "(2, 4)"))
    yield BadCall("bias of x", lambda: op(x, 2, x_bias=x[0, :2, 0]), ValueError, ("x_bias", "(2,)", "(4,)"))


def _bad_batch_norm() -> Iterator[BadCall]:
    op: Any = ops.batch_norm_act
    x, r = torch.zeros(2, 4, 3), torch.ones(4)
    yield from _bad_norms(op, (r, r))
    yield BadCall("running shape", lambda: op(x, r[:2], r), ValueError, ("running_mean", "(2,)", "(4,)"))
    yield BadCall("running dtype", lambda: op(x, r, r.double()), TypeError, ("running_var", "float64", "float32"))
    yield BadCall("one running", lambda: op(x, r, None), ValueError, ("running_var", "None", "running_mean", "both"))
    yield BadCall("no running", lambda: op(x, None, None), ValueError, ("running_mean", "running_var", "evaluation"))
    yield BadCall("one value", lambda: op(x[:1, :, 0], r, r, training=True), ValueError, ("(1, 4)", "more than one"))
    yield BadCall("momentum", lambda: op(x, r, r, momentum=1.5), ValueError, ("momentum", "1.5", "0 to 1"))


def _bad_bias_act() -> Iterator[BadCall]:
    op: Any = ops.bias_act
    x = torch.zeros(2, 4, 3)
    yield from _bad_inputs(op)
    yield BadCall("gain", lambda: op(x, activation="relu", gain=float("inf")), ValueError, ("gain", "inf", "finite"))
    yield BadCall("clamp", lambda: op(x, activation="relu", clamp=-1.0), ValueError, ("clamp", "-1.0", ">= 0"))
    yield BadCall("clamp in words", lambda: op(x, activation="relu", clamp="1"), TypeError, ("clamp", "str", "number"))


# Workloads and what an ideal kernel would do on them.


def _normal(device: torch.device, dtype: torch.dtype, *shape: int, channels_last: bool = False) -> Tensor:
    x = torch.randn(shape, device=device).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def _group_norm_workload(
    name: str, *shape: int, channels_last: bool = False, residual: bool = False, modulated: bool = False
) -> Workload:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        channels = shape[1]
        x = _normal(device, dtype, *shape, channels_last=channels_last)
        kwargs = {"residual": torch.randn_like(x)} if residual else {}
        if modulated:
            scale, shift = _normal(device, dtype, shape[0], 2 * channels).chunk(2, 1)
            kwargs |= {"scale": scale, "shift": shift}
        affine = _normal(device, dtype, channels), _normal(device, dtype, channels)
        return Sample(name, (x, min(32, channels), *affine), kwargs)

    return Workload(name, make)


def _batch_norm_workload(
    name: str, *shape: int, channels_last: bool = False, training: bool = True, activation: str = "relu"
) -> Workload:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        x = _normal(device, dtype, *shape, channels_last=channels_last)
        running = tuple(torch.full((shape[1],), v, device=device, dtype=dtype) for v in (0.0, 1.0))
        affine = _normal(device, dtype, shape[1]), _normal(device, dtype, shape[1])
        return Sample(name, (x, *running, *affine, training), {"activation": activation, "negative_slope": 0.2})

    return Workload(name, make)


def _bias_act_workload(name: str, *shape: int, channels_last: bool = False) -> Workload:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        x = _normal(device, dtype, *shape, channels_last=channels_last)
        options = {"activation": "leaky_relu", "negative_slope": 0.2, "gain": 2**0.5}
        return Sample(name, (x, _normal(device, dtype, shape[1])), options)

    return Workload(name, make)


def _bytes(sample: Sample, backward: bool) -> int:
    """Forward reads x (and a residual) and writes y (and their sum); backward reads two such and writes one."""
    size = sample.args[0].numel() * sample.args[0].element_size()
    return size * (3 if backward else 2 if sample.get("residual") is None else 4)


def _flops(forward: int, backward: int):
    def count(sample: Sample, is_backward: bool) -> int:
        return sample.args[0].numel() * (backward if is_backward else forward)

    return count


def _largest(t: Any) -> float:
    """Of what is finite; 1 for a parameter that is not given."""
    if not isinstance(t, Tensor):
        return 1.0
    finite = t.detach()[t.detach().isfinite()].double()
    return finite.abs().max().item() if finite.numel() else 0.0


def gain_of_a_norm(groups: Tensor, eps: float, *factors: Any) -> float:
    """What incoming gradients, of a few units, are multiplied with before a norm takes back what moves its statistics,
    which may be all of it: the factors and 1 / (standard deviation of a row of `groups`). Means are kept in float32,
    which counts as much more as a mean is larger than the deviation."""
    rows = groups.detach().double() if groups.shape[1] else groups.new_zeros(1, 1)
    inverse = (rows.var(1, unbiased=False) + eps).rsqrt()
    gain = _largest(inverse.clamp(min=1) * (1 + rows.mean(1).abs() * inverse))
    for factor in factors:
        gain *= _largest(factor)
    return 4 * gain


def _group_norm_terms(sample: Sample) -> tuple[float, float]:
    x, residual, scale = sample.args[0], sample.get("residual"), sample.get("scale")
    total = x if residual is None else x + residual
    if (x_bias := sample.get("x_bias")) is not None:
        total = total + _against(x_bias, x)
    groups = total.reshape(x.shape[0] * sample.args[1], -1) if x.numel() else total.reshape(0, 0)
    growth = None if scale is None else 1 + scale.detach().abs()
    return 0.0, gain_of_a_norm(groups, sample.get(4) or 1e-5, sample.get(2), growth)


def batch_norm_gain(total: Tensor, training: bool, running_var: Any, weight: Any, eps: float = 1e-5) -> float:
    """:func:`gain_of_a_norm` per channel, of statistics of the batch or of given ones."""
    if training:
        return gain_of_a_norm(total.transpose(0, 1).flatten(1), eps, weight)
    return 4 * _largest((running_var.detach().double() + eps).rsqrt()) * _largest(weight)


def _batch_norm_terms(sample: Sample) -> tuple[float, float]:
    x, residual = sample.args[0], sample.get("residual")
    training, total = bool(sample.get(5)), x if residual is None else x + residual
    return 0.0, batch_norm_gain(total, training, sample.get(2), sample.get(3))


def _sum_bytes(sample: Sample) -> int:
    sums = sum(sample.get(name) is not None for name in ("residual", "x_bias"))
    return sums * sample.args[0].numel() * sample.args[0].element_size()


register(
    OpSpec(
        name="group_norm_act",
        family="norm_act",
        summary="group norm and activation; residual added before, per-sample scale and shift (AdaGN) after",
        public=ops.group_norm_act,
        eager=eager_group_norm_act,
        gradient_order=2,
        reordering=4.0,  # parameters' gradients are sums over batch and space
        dispatcher_ops=(
            "group_norm_act",
            "group_norm_act_biased",
            "group_norm_act_backward",
            "norm_act_double_backward",
            "bias_act",
            "bias_act_backward",
        ),
        differentiable=(0, 2, 3, "residual", "scale", "shift", "x_bias"),
        samples=_group_norm_samples,
        bad_calls=_bad_group_norm,
        workloads=(
            _group_norm_workload("VAE decoder [8, 256, 64, 64]", 8, 256, 64, 64),
            _group_norm_workload("VAE decoder, channels_last", 8, 256, 64, 64, channels_last=True),
            _group_norm_workload("middle of a decoder [8, 512, 16, 16]", 8, 512, 16, 16),
            _group_norm_workload("UNet, AdaGN [4, 320, 32, 32]", 4, 320, 32, 32, modulated=True),
            _group_norm_workload("residual [4, 256, 32, 32]", 4, 256, 32, 32, residual=True),
            _group_norm_workload("small [2, 64, 8, 8]", 2, 64, 8, 8),
        ),
        gpu_workloads=(
            _group_norm_workload("beyond the cache [16, 256, 128, 128]", 16, 256, 128, 128),
            _group_norm_workload(
                "beyond the cache, channels_last [16, 256, 128, 128]", 16, 256, 128, 128, channels_last=True
            ),
            _group_norm_workload(
                "VAE decoder's last stage, channels_last [1, 128, 1024, 1024]", 1, 128, 1024, 1024, channels_last=True
            ),
        ),
        bytes_moved=_bytes,
        flops=_flops(12, 30),
        modules=("GroupNormAct",),
        kept_bytes=lambda s: 2 * 8 * s.args[0].shape[0] * s.args[1] + _sum_bytes(s),
        magnitude=_group_norm_terms,
        pointwise=False,
    )
)
register(
    OpSpec(
        name="batch_norm_act",
        family="norm_act",
        summary="batch norm, training and evaluation, and activation; residual added before",
        public=ops.batch_norm_act,
        eager=eager_batch_norm_act,
        gradient_order=2,
        reordering=4.0,  # parameters' gradients are sums over batch and space
        dispatcher_ops=("batch_norm_act", "batch_norm_act_backward", "norm_act_double_backward"),
        differentiable=(0, 3, 4, "residual"),
        samples=_batch_norm_samples,
        bad_calls=_bad_batch_norm,
        workloads=(
            _batch_norm_workload("DCGAN generator [64, 128, 16, 16]", 64, 128, 16, 16),
            _batch_norm_workload("DCGAN generator, channels_last", 64, 128, 16, 16, channels_last=True),
            _batch_norm_workload("last block of a generator [64, 64, 32, 32]", 64, 64, 32, 32),
            _batch_norm_workload("evaluation [64, 64, 32, 32]", 64, 64, 32, 32, training=False),
            _batch_norm_workload("critic [64, 512, 4, 4]", 64, 512, 4, 4, activation="leaky_relu"),
            _batch_norm_workload("small [8, 32, 8, 8]", 8, 32, 8, 8),
        ),
        gpu_workloads=(_batch_norm_workload("beyond the cache [16, 256, 128, 128]", 16, 256, 128, 128),),
        bytes_moved=_bytes,
        flops=_flops(8, 14),
        modules=("BatchNormAct",),
        kept_bytes=lambda s: 2 * 8 * s.args[0].shape[1] + _sum_bytes(s),
        magnitude=_batch_norm_terms,
        pointwise=False,
    )
)
register(
    OpSpec(
        name="bias_act",
        family="norm_act",
        summary="bias, activation, gain and clamp",
        public=ops.bias_act,
        eager=eager_bias_act,
        gradient_order=2,
        reordering=4.0,  # parameters' gradients are sums over batch and space
        dispatcher_ops=("bias_act", "bias_act_backward"),
        differentiable=(0, 1),
        samples=_bias_act_samples,
        bad_calls=_bad_bias_act,
        workloads=(
            _bias_act_workload("StyleGAN2 block [8, 256, 64, 64]", 8, 256, 64, 64),
            _bias_act_workload("StyleGAN2 block, channels_last", 8, 256, 64, 64, channels_last=True),
            _bias_act_workload("mapping network [64, 512]", 64, 512),
        ),
        gpu_workloads=(_bias_act_workload("beyond the cache [16, 256, 128, 128]", 16, 256, 128, 128),),
        bytes_moved=_bytes,
        flops=_flops(4, 5),
        modules=("BiasAct",),
    )
)
