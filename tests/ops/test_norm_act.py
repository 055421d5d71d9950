"""The norm_act family: what the battery cannot know."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import stateless

import genmod
from genmod import _native, backends, nn, ops
from genmod.reference import activation as activations
from genmod.reference import norm_act as reference
from genmod.specs import norm_act as specs
from genmod.testing import battery

NATIVE = pytest.mark.skipif(not _native.loaded, reason=f"no C++ kernels: {_native.reason}")
BACKENDS = ["reference", pytest.param("cpp", marks=NATIVE)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def test_group_norm_by_hand():
    """Two groups of two values: (x - mean) / std is -1 and 1, whatever the values."""
    x = torch.tensor([[3.0, 5.0, -7.0, 1.0]], dtype=torch.double)
    w, b = torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), torch.tensor([0.0, 1.0, 0.0, -5.0]).double()
    scale, shift = torch.tensor([[0.0, 0.0, 1.0, 0.0]]).double(), torch.tensor([[0.0, 0.0, 0.0, 10.0]]).double()
    y = ops.group_norm_act(x, 2, w, b, 1e-12, activation="identity", scale=scale, shift=shift)
    torch.testing.assert_close(y, torch.tensor([[-1.0, 3.0, -6.0, 9.0]]).double())


def test_bias_act_is_the_paper_s():
    """lrelu with a slope of 0.2 and a gain of sqrt(2) keeps the second moment of a centred input almost."""
    y = ops.bias_act(
        torch.tensor([[-1.0, 1.0, 8.0]]), activation="leaky_relu", negative_slope=0.2, gain=2**0.5, clamp=2
    )
    torch.testing.assert_close(y, torch.tensor([[-0.2 * 2**0.5, 2**0.5, 2.0]]))


@pytest.mark.parametrize("training", [False, True])
def test_a_weight_with_gaps(training):
    """In a small call, where stock PyTorch is taken, whose gradient of [N, C] takes a weight with gaps as dense."""
    x = torch.randn(4, 3, requires_grad=True)
    weight, running = torch.randn(3, 2)[:, 0], (torch.randn(3), torch.rand(3) + 0.5)

    def gradient(weight):
        y = ops.batch_norm_act(x, *(t.clone() for t in running), weight, training=training, activation="silu")
        return torch.autograd.grad(y.square().sum(), x)[0]

    torch.testing.assert_close(gradient(weight), gradient(weight.contiguous()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_float32_modulation_of_half_precision(dtype, backend):
    x, scale, shift = torch.randn(2, 4, 3, dtype=dtype), torch.randn(2, 4), torch.randn(2, 4)
    with genmod.backend(backend):
        y = ops.group_norm_act(x, 2, scale=scale, shift=shift)
    assert y.dtype == dtype
    exact = ops.group_norm_act(x.double(), 2, scale=scale.double(), shift=shift.double())
    torch.testing.assert_close(y.double(), exact, rtol=2e-2, atol=2e-2)


# Statistics.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("mean", [1000.0, -30000.0])
def test_a_large_mean_costs_no_more_than_in_torch(backend, layout, mean):
    """Also over several pieces of work, whose moments have to be joined."""
    torch.manual_seed(0)
    x = (torch.randn(2, 8, 50, 60) + mean).contiguous(memory_format=layout)
    exact = F.group_norm(x.double(), 2)
    theirs = (F.group_norm(x, 2) - exact).abs().max()
    with genmod.backend(backend):
        ours = (ops.group_norm_act(x, 2, activation="identity") - exact).abs().max()
        assert ours <= 2 * theirs + 1e-6
        exact = F.batch_norm(x.double(), None, None, training=True)
        theirs = (F.batch_norm(x, None, None, training=True) - exact).abs().max()
        ours = (ops.batch_norm_act(x, None, None, training=True, activation="identity") - exact).abs().max()
        assert ours <= 2 * theirs + 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
def test_running_statistics_move_as_torch_s(backend, dtype, momentum):
    theirs = torch.randn(5).to(dtype), torch.rand(5).to(dtype)
    ours = tuple(t.clone() for t in theirs)
    with genmod.backend(backend):
        for batch in (4, 7, 1):
            x = (2 * torch.randn(batch, 5, 3, 2) + 1).to(dtype)
            F.batch_norm(x, *theirs, training=True, momentum=momentum)
            ops.batch_norm_act(x, *ours, training=True, momentum=momentum)
            rounding = {"rtol": 0.016, "atol": 0.008} if dtype is torch.bfloat16 else {}  # of each step, to eight bits
            torch.testing.assert_close(ours, theirs, **rounding)


def test_an_empty_batch_leaves_running_statistics_alone():
    running = torch.ones(3), torch.ones(3)
    ops.batch_norm_act(torch.zeros(0, 3, 2), *running, training=True)
    assert all((t == 1).all() for t in running)


# Rows of memory that kernels cut in their own ways: many lanes, few, short planes, several pieces, one block.


@NATIVE
@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "shape",
    [(1, 2, 190, 181), (3, 130, 5, 7), (2, 3, 64, 65), (70, 6, 2, 3), (1, 300, 9, 8), (2, 4, 129, 140)],
    ids=str,
)
def test_sizes_that_cut_differently(shape, layout):
    x = torch.randn(shape).contiguous(memory_format=layout)
    channels = shape[1]
    samples = [
        (specs.eager_group_norm_act, ops.group_norm_act, (x, 1), {}),
        (specs.eager_group_norm_act, ops.group_norm_act, (x, channels), {"residual": torch.randn(shape)}),
        (specs.eager_batch_norm_act, ops.batch_norm_act, (x, None, None, None, None, True), {}),
        (specs.eager_bias_act, ops.bias_act, (x,), {"activation": "gelu"}),
    ]
    for eager, ours, args, kwargs in samples:
        results = []
        for function, dtype in ((eager, torch.double), (ours, torch.float)):
            parameters = [torch.linspace(0.5, 1.5, channels), torch.linspace(-1, 1, channels)]
            if ours is ops.bias_act:
                parameters = parameters[1:]
            inputs = [t.to(dtype).requires_grad_() for t in (x, *parameters)]
            given = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
            names = ("weight", "bias")[-len(parameters) :]
            rest = tuple(a for a in args[1:] if ours is not ops.batch_norm_act)
            if ours is ops.batch_norm_act:
                rest, given = (None, None), {"training": True}
            with genmod.backend("cpp"):
                outputs = battery.as_tuple(function(inputs[0], *rest, **dict(zip(names, inputs[1:])), **given))
                grads = torch.autograd.grad(outputs, inputs, battery.cotangents(outputs))
            results.append([*outputs, *grads])
        for exact, got in zip(*results, strict=True):
            torch.testing.assert_close(got.double(), exact, rtol=2e-4, atol=2e-5 * exact.abs().max().item())


@NATIVE
def test_whole_blocks_and_shared_blocks_have_the_same_bits():
    """Few blocks on several threads are shared among them, on one thread they are not."""
    x, threads = torch.randn(1, 4, 150, 160), torch.get_num_threads()
    results = []
    with genmod.backend("cpp"):
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            try:
                leaf = x.clone().requires_grad_()
                y = ops.group_norm_act(leaf, 1)
                results.append((y, *torch.autograd.grad(y, leaf, x)))
            finally:
                torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


# Derivatives.


def test_second_derivative_of_a_piecewise_linear_activation_is_none():
    x = torch.randn(3, 4, 5, requires_grad=True)
    with genmod.backend("reference"):
        y = ops.bias_act(x, activation="leaky_relu", negative_slope=0.2)
    (grad,) = torch.autograd.grad(y, x, torch.randn(3, 4, 5, requires_grad=True), create_graph=True)
    assert torch.autograd.grad(grad.sum(), x, allow_unused=True) == (None,)


def second_derivatives(call, leaves, seed=0):
    """Of a sum of all first derivatives, by every leaf and every incoming gradient."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like):
        return torch.randn(like.shape, generator=generator, dtype=torch.double).to(like.dtype)

    outputs = battery.as_tuple(call(*leaves))
    incoming = [normal(y).requires_grad_() for y in outputs]
    first = torch.autograd.grad(outputs, leaves, incoming, create_graph=True)
    arriving = [normal(d) for d in first]
    found = torch.autograd.grad(first, [*leaves, *incoming], arriving, allow_unused=True)
    return [torch.zeros_like(t) if d is None else d for t, d in zip([*leaves, *incoming], found, strict=True)]


def group_norm_with(op, *, activation, modulated, residual):
    def call(x, w, b, *more):
        names = [*(["scale", "shift"] if modulated else []), *(["residual"] if residual else [])]
        return op(x, 2, w, b, activation=activation, **dict(zip(names, more, strict=True)))

    return call


def batch_norm_with(op, *, activation, training, residual):
    def call(x, w, b, *more):
        statistics = 0.3 + torch.arange(x.shape[1], dtype=x.dtype), 1 + torch.arange(x.shape[1], dtype=x.dtype)
        named = {"residual": more[-1]} if residual else {}
        return op(x, *statistics, w, b, training, activation=activation, **named)

    return call


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", activations.NAMES)
def test_second_derivatives(activation, backend, dtype):
    """Against autograd of the op as people write it, in double precision: planes, rows of few pixels, channels_last and
    blocks that several threads share."""
    wide = torch.double
    shapes = ((2, 6, 5, 7), (3, 4, 2, 2), (5, 6), (1, 4, 130, 131))
    for shape in shapes if activation == "silu" else shapes[:2]:
        formats = LAYOUTS if len(shape) == 4 else LAYOUTS[:1]
        for form, extra in itertools.product(formats, (False, True)):
            x = torch.randn(shape, dtype=wide).contiguous(memory_format=form)
            leaves = [x, torch.randn(shape[1], dtype=wide), torch.randn(shape[1], dtype=wide)]
            more = [torch.randn(shape[:2], dtype=wide) for _ in range(2)] if extra else []
            more += [torch.randn(shape, dtype=wide)] if extra else []
            group = {"activation": activation, "modulated": extra, "residual": extra}
            batch = [{"activation": activation, "training": t, "residual": extra} for t in (True, False)]
            races = [(group_norm_with, ops.group_norm_act, specs.eager_group_norm_act, group, more)]
            races += [
                (batch_norm_with, ops.batch_norm_act, specs.eager_batch_norm_act, options, more[-1:])
                for options in batch
            ]
            for make, ours, eager, options, further in races:
                exact = second_derivatives(
                    make(eager, **options), [t.clone().requires_grad_() for t in leaves + further]
                )
                with genmod.backend(backend):
                    given = [t.to(dtype).requires_grad_() for t in leaves + further]
                    found = second_derivatives(make(ours, **options), given)
                for got, expected in zip(found, exact, strict=True):
                    error = (got.double() - expected).abs().max().item()
                    assert error <= (1e-11 if dtype is wide else 5e-5) * (1 + expected.abs().max().item())


def test_statistics_have_no_gradient():
    """They are outputs of the dispatcher op; the gradient of y already holds what flows through them."""
    x = torch.randn(2, 4, 3, requires_grad=True)
    y, _, mean, rstd = torch.ops.genmod.group_norm_act(x, None, None, None, None, None, 2, 1e-5, "silu", 0.01)
    assert y.requires_grad
    assert not mean.requires_grad
    assert not rstd.requires_grad


def model(x, w, b):
    y, total = ops.group_norm_act(x, 2, w, b, residual=x * x)
    return (ops.bias_act(y, b, activation="gelu") * total).sum() + ops.batch_norm_act(y, b, w * w, w).sum()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_torch_func_grad(compiled):
    tensors = torch.randn(3, 4, 5), torch.rand(4) + 0.5, torch.randn(4)
    gradient = torch.func.grad(model)
    if compiled:
        torch._dynamo.reset()
        gradient = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    leaf = tensors[0].clone().requires_grad_()
    expected = torch.autograd.grad(model(leaf, *tensors[1:]), leaf)[0]
    torch.testing.assert_close(gradient(*tensors), expected)


def test_compile_updates_buffers_without_graph_breaks():
    torch._dynamo.reset()
    ours, theirs = nn.BatchNormAct(4), torch.nn.BatchNorm2d(4)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x = torch.randn(3, 4, 40, 50)
        torch.testing.assert_close(compiled(x), theirs(x).relu())
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


# Small calls, which stock PyTorch serves faster.


@pytest.mark.parametrize("size", [2, 100])
def test_small_and_large_calls_agree(size):
    """Whatever the choice of backend is, and in autocast too."""
    for dtype in (torch.float32, torch.bfloat16):
        x, w, b = (torch.randn(s).to(dtype) for s in ((2, 4, size, size), (4,), (4,)))
        calls = {
            "group": lambda x, w, b: ops.group_norm_act(x, 2, w, b, residual=x),
            "bias alone": lambda x, w, b: ops.group_norm_act(x, 2, bias=b, activation="tanh"),
            "batch": lambda x, w, b: ops.batch_norm_act(x, b.clone(), w.clone() ** 2, w, b, True),
            "bias": lambda x, w, b: ops.bias_act(x, b, activation="silu", gain=2.0, clamp=1.0),
        }
        for name, call in calls.items():
            with genmod.backend("reference"):
                leaf = x.clone().requires_grad_()
                expected = battery.as_tuple(call(leaf, w, b))
                expected = (*expected, *torch.autograd.grad(expected, leaf, battery.cotangents(expected)))
            leaf = x.clone().requires_grad_()
            with torch.autocast("cpu", enabled=name == "group"):
                got = battery.as_tuple(call(leaf, w, b))
            got = (*got, *torch.autograd.grad(got, leaf, battery.cotangents(got)))
            for g, e in zip(got, expected, strict=True):
                loose = dtype is torch.bfloat16
                torch.testing.assert_close(g, e, rtol=0.05 if loose else 1e-4, atol=0.1 if loose else 1e-4)


@NATIVE
def test_planes_of_few_pixels_take_stock_pytorch():
    """In float32, whatever the number of elements for group norm, and up to a number for batch norm."""

    def backend(op, *shape: int, dtype: torch.dtype = torch.float32) -> str:
        return genmod.explain(
            op, torch.empty(shape, dtype=dtype), *([4] if op is ops.group_norm_act else [None] * 2)
        ).backend

    group, batch = ops.group_norm_act, ops.batch_norm_act
    assert (
        backend(group, 256, 64, 8, 8) == backend(group, 512, 128, 1, 1) == backend(batch, 64, 64, 4, 4) == "reference"
    )
    assert backend(group, 64, 64, 9, 9) == backend(group, 64, 64, 8, 8, dtype=torch.bfloat16) == "cpp"
    assert backend(group, 1, 64, 32, 32) == "reference" != backend(group, 1, 64, 64, 64)
    assert backend(batch, 512, 64, 4, 4) == backend(batch, 64, 128, 2, 2) == backend(batch, 8, 64, 16, 16) == "cpp"
    with genmod.backend("cpp"):
        assert backend(group, 256, 64, 8, 8) == "cpp"


@pytest.mark.parametrize("activation", activations.NAMES)
@pytest.mark.parametrize("slope", [0.2, 0.0, -0.5])
def test_small_calls_are_torch_s_bit_for_bit(activation, slope):
    """Also where it activates in place, to the second derivative."""
    x, w, b = torch.randn(3, 8, 5, 5), torch.randn(8), torch.randn(8)
    act = functools.partial(activations.apply, activation, negative_slope=slope)
    pairs = (
        (
            lambda x, w, b: ops.group_norm_act(x, 4, w, b, activation=activation, negative_slope=slope),
            lambda x, w, b: act(F.group_norm(x, 4, w, b)),
        ),
        (
            lambda x, w, b: ops.batch_norm_act(
                x, *statistics(), w, b, True, activation=activation, negative_slope=slope
            ),
            lambda x, w, b: act(F.batch_norm(x, *statistics(), w, b, True)),
        ),
    )

    def statistics():
        return torch.zeros(8), torch.ones(8)

    def derivatives(call):
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        y = call(*leaves)
        first = torch.autograd.grad(y, leaves, torch.cos(x), create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), leaves[:2])
        return y, *first, *second

    for ours, theirs in pairs:
        with torch.no_grad():
            assert torch.equal(ours(x, w, b), theirs(x, w, b))
        for got, expected in zip(derivatives(ours), derivatives(theirs), strict=True):
            assert torch.equal(got, expected)


def test_running_statistics_move_once_where_a_small_call_is_wrong():
    mean, var = torch.zeros(8), torch.ones(8)
    for wrong in ({"activation": "swish"}, {"negative_slope": math.nan}, {"weight": torch.ones(2, 4)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ops.batch_norm_act(torch.randn(4, 8, 3, 3), mean, var, **({"weight": torch.ones(8)} | wrong), training=True)
    assert not mean.any() and var.eq(1).all()


@pytest.mark.parametrize("pixels", [2, 4, 8])
def test_planes_of_few_pixels_agree(pixels):
    x, w, b = torch.randn(64, 64, pixels, pixels), torch.randn(64), torch.randn(64)
    for call in (
        lambda x: ops.group_norm_act(x, 4, w, b),
        lambda x: ops.batch_norm_act(x, None, None, w, b, True),
    ):
        results = []
        for forced in (None, "reference"):
            leaf = x.clone().requires_grad_()
            with genmod.backend(forced) if forced else contextlib.nullcontext():
                y = call(leaf)
                results.append((y, *torch.autograd.grad(y.square().sum(), leaf)))
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


# Modules.


def test_group_norm_act_loads_torch_s_checkpoint():
    theirs = torch.nn.GroupNorm(2, 6, eps=1e-3)
    torch.nn.init.normal_(theirs.weight)
    ours = nn.GroupNormAct(2, 6, eps=1e-3, activation="leaky_relu", negative_slope=0.2)
    ours.load_state_dict(theirs.state_dict())
    x, scale, shift = torch.randn(2, 6, 5, 4), torch.randn(2, 6), torch.randn(2, 6)
    torch.testing.assert_close(ours(x), F.leaky_relu(theirs(x), 0.2))
    y, total = ours(x, x, scale=scale, shift=shift)
    expected = theirs(2 * x) * (1 + scale[..., None, None]) + shift[..., None, None]
    torch.testing.assert_close(y, F.leaky_relu(expected, 0.2))
    torch.testing.assert_close(total, 2 * x)
    assert "activation='leaky_relu'" in repr(ours)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"track_running_stats": False}, {"affine": False}], ids=str
)
def test_batch_norm_act_keeps_its_buffers_as_torch_does(options):
    theirs, ours = torch.nn.BatchNorm2d(3, **options), nn.BatchNormAct(3, **options)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for training in (True, True, False):
        x = 2 * torch.randn(4, 3, 5, 2) + 1
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x).relu())
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    with pytest.raises(ValueError, match="4D"):
        ours(torch.zeros(2, 3))


def test_bias_act_module():
    module = nn.BiasAct(3, "leaky_relu", negative_slope=0.2, gain=2.0, clamp=1.5)
    x = torch.randn(2, 3, 4)
    y = stateless.functional_call(module, {"bias": torch.ones(3)}, (x,))
    torch.testing.assert_close(y, (2 * F.leaky_relu(x + 1, 0.2)).clamp(-1.5, 1.5))
    assert not list(nn.BiasAct(3, "relu", bias=False).parameters())
    for make in (nn.GroupNormAct, nn.BatchNormAct):
        with pytest.raises(ValueError, match=r"activation.*swish.*silu"):
            make(4, *([4] if make is nn.GroupNormAct else []), activation="swish")


@pytest.mark.parametrize("backend", [*BACKENDS, "triton"])
@pytest.mark.parametrize("keep_sum", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_a_bias_of_x_below_the_public_call(backend, keep_sum, with_residual):
    """The dispatcher's op takes every combination, also those that no public call makes."""
    status = {s.name: s for s in backends.status()}[backend]
    if not status.available or (backend == "triton" and torch.cuda.is_available()):
        pytest.skip(f"{backend} does not run on CPU tensors here: {status.reason}")
    torch.manual_seed(0)
    x, residual = torch.randn(2, 4, 5, 3), 8 + torch.randn(2, 4, 5, 3)
    x_bias, weight, bias = 5 * torch.randn(4), torch.randn(4), torch.randn(4)
    rest = (residual if with_residual else None, weight, bias, None, None, 2, 1e-5, "silu", 0.0, keep_sum)
    expected = reference.group_norm_act_biased(x.double(), x_bias.double(), *_doubled(rest))
    with genmod.backend(backend):
        found = torch.ops.genmod.group_norm_act_biased(x, x_bias, *rest)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f.double(), e, rtol=1e-5, atol=1e-5)


def _doubled(values):
    return (v.double() if isinstance(v, torch.Tensor) else v for v in values)
