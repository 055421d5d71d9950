"""The shared gradient against autograd's: values, penalties, parameters' gradients, and what it refuses."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmod import nn as gnn
from genmod import penalties
from genmod.penalties import shared_gradient, value_and_input_gradient

from .critics import OTHERS, PIECEWISE_LINEAR, dcgan

LOSSES = {
    "loss and r1": lambda d, g: F.softplus(-d).mean() + 5 * g.square().sum((1, 2, 3)).mean(),
    "loss alone": lambda d, g: F.softplus(-d).mean(),
    "gradient penalty alone": lambda d, g: ((g.square().sum((1, 2, 3)) + 1e-12).sqrt() - 1).square().mean(),
    "both at once": lambda d, g: (d * g.square().sum((1, 2, 3))).exp().mean(),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def samples(dtype: torch.dtype = torch.float64, batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 8, 8, dtype=dtype)


def gradients(critic: nn.Module, x: Tensor, loss, engine: str) -> list[Tensor | None]:
    critic = copy.deepcopy(critic)  # spectral norm's state moves with every forward
    values, inputs = value_and_input_gradient(critic, x, engine=engine)
    result = loss(values, inputs)
    parameters = [p for p in critic.parameters() if p.requires_grad]
    return [values, inputs, result, *torch.autograd.grad(result, parameters, allow_unused=True)]


def assert_same(ours: list[Tensor | None], theirs: list[Tensor | None], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for i, (a, b) in enumerate(zip(ours, theirs)):
        if a is None or b is None:
            assert all(t is None or not t.any() for t in (a, b)), f"result {i} is None on one side only"
            continue
        scale = b.abs().max().clamp(min=1e-30)
        assert ((a - b).abs().max() / scale).item() <= tolerance, f"result {i}"


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("make", PIECEWISE_LINEAR.values(), ids=PIECEWISE_LINEAR)
def test_equals_autograd(make, loss):
    critic, x = make().double(), samples()
    assert_same(gradients(critic, x, loss, "shared"), gradients(critic, x, loss, "autograd"), 1e-10)


@pytest.mark.parametrize("make", PIECEWISE_LINEAR.values(), ids=PIECEWISE_LINEAR)
def test_equals_autograd_in_float32(make):
    critic, x = make(), samples(torch.float32, 8)
    for loss in (LOSSES["loss and r1"], LOSSES["gradient penalty alone"]):
        oracle = gradients(copy.deepcopy(critic).double(), x.double(), loss, "autograd")
        ours, theirs = (gradients(critic, x, loss, engine) for engine in ("shared", "autograd"))
        for o, a, b in zip(oracle, ours, theirs):
            if o is not None and o.any():
                scale = o.abs().max()
                error, theirs_error = ((t.double() - o).abs().max() / scale for t in (a, b))
                assert error <= 2 * theirs_error + 1e-5


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batches_and_layouts(batch, memory_format):
    critic = dcgan().double().to(memory_format=memory_format)
    x = samples(batch=batch).contiguous(memory_format=memory_format)
    loss = LOSSES["loss and r1"]
    assert_same(gradients(critic, x, loss, "shared"), gradients(critic, x, loss, "autograd"), 1e-10)


def test_critics_without_space():
    critic = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.LeakyReLU(0.1), nn.Linear(16, 1)).double()
    x = torch.randn(7, 2, dtype=torch.float64)

    def loss(d, g):
        return (d + g.square().sum(1)).mean()

    assert_same(gradients(critic, x, loss, "shared"), gradients(critic, x, loss, "autograd"), 1e-10)


def test_sequences():
    critic = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(20, 1)).double()
    x = torch.randn(3, 2, 5, dtype=torch.float64)

    def loss(d, g):
        return (d + g.square().sum((1, 2))).mean()

    assert_same(gradients(critic, x, loss, "shared"), gradients(critic, x, loss, "autograd"), 1e-10)


def count_convolutions(function) -> int:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        passes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution.default:
                Count.passes += 1
            elif func is torch.ops.aten.convolution_backward.default:
                Count.passes += sum(args[-1][:2])
            return func(*args, **(kwargs or {}))

    with Count():
        function()
    return Count.passes


def test_four_passes_where_autograd_takes_six():
    critic, x = dcgan().double(), samples()
    layers = 3

    def step(engine):
        values, inputs = value_and_input_gradient(critic, x, engine=engine)
        LOSSES["loss and r1"](values, inputs).backward()

    assert count_convolutions(lambda: step("shared")) == 4 * layers
    # Autograd's zeros through the activations and the weight gradients nobody asked for come on top of its six.
    assert count_convolutions(lambda: step("autograd")) >= 6 * layers


def test_critic_layers_waste_nothing_with_autograd():
    plain, ours = dcgan().double(), PIECEWISE_LINEAR["critic layers"]().double()
    ours.load_state_dict(plain.state_dict())
    x = samples()

    def step(critic):
        return penalties.r1(critic, x, engine="autograd").backward()

    assert count_convolutions(lambda: step(ours)) <= 4 * 3 < count_convolutions(lambda: step(plain))
    for a, b in zip(ours.parameters(), plain.parameters()):
        if b.grad is None or a.grad is None:
            assert not any(t is not None and t.any() for t in (a.grad, b.grad))
        else:
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_critics_take_autograd_and_say_so_once(make, monkeypatch):
    monkeypatch.setattr(shared_gradient, "_too_small", lambda x: False)
    critic, x = make().double(), samples()
    with pytest.warns(UserWarning, match="by autograd, not by the shared gradient"):
        ours = penalties.r1(critic, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = penalties.r1(critic, x)
    assert torch.equal(ours, again)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(critic(leaf).sum(), leaf, create_graph=True)
    parameters = list(critic.parameters())
    expected = torch.autograd.grad(5 * g.square().sum() / len(x), parameters, allow_unused=True)
    assert_same(list(torch.autograd.grad(ours, parameters, allow_unused=True)), list(expected), 1e-10)


def _out_of_sight(x: Tensor, critic: nn.Module) -> Tensor:
    with torch._C.DisableTorchFunction():
        hidden = x.exp()
    return critic(x) + hidden.flatten(1).sum(1)


REFUSED = {
    "out of sight": (_out_of_sight, "do not show"),
    "a product": (lambda x, c: c(x * x), "multiplies two values"),
    "mixed samples": (lambda x, c: c(x - x.mean(0)), "mixes samples"),
    "all samples at once": (lambda x, c: c(x) - x.sum(), "mixes samples"),
    "samples picked": (lambda x, c: c(x[torch.tensor([1, 0, 3, 2])]), "picks samples"),
    "the batch moved": (lambda x, c: c(x.permute(1, 0, 2, 3).reshape(4, 3, 8, 8)), "moves the batch"),
    "groups of samples": (lambda x, c: c(x.view(2, 6, 8, 8).reshape(4, 3, 8, 8)), "the batch is gone"),
    "use after a change in place": (lambda x, c: _changed_in_place(x, c), "changed in place"),
    "detached": (lambda x, c: c(x + x.detach()), "not known"),
    "an exponential": (lambda x, c: c(x.exp()), "exp"),
    "weights from x": (lambda x, c: F.conv2d(x, x[:, :, :3, :3]).flatten(1).sum(1), "weight that depends on x"),
    "broadcast over samples": (lambda x, c: (c(x) + c(x)[:, None]).sum(1), "broadcasts over samples"),
    "padding by a number": (lambda x, c: c(F.pad(x, (1, 1), value=3.0)[:, :, :, 1:-1]), "expected 0"),
    "dropout": (lambda x, c: c(F.dropout(x, 0.5)), "random"),
}


def _changed_in_place(x: Tensor, critic: nn.Module) -> Tensor:
    h = x * 2
    h.view(len(x), -1).relu_()
    return critic(h)


@pytest.mark.parametrize(("function", "reason"), REFUSED.values(), ids=REFUSED)
def test_refusals_name_the_reason(function, reason):
    critic = dcgan().double()

    def whole(x):
        return function(x, critic)

    with pytest.raises(RuntimeError, match=reason) as raised:
        value_and_input_gradient(whole, samples(), engine="shared")
    assert "engine" in str(raised.value)


def test_graph_can_be_kept_and_is_freed_otherwise():
    critic, x = dcgan().double(), samples()
    values, inputs = value_and_input_gradient(critic, x, engine="shared")
    loss = LOSSES["loss and r1"](values, inputs)
    parameters = list(critic.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    assert_same(list(second), list(first), 0.0)
    values, inputs = value_and_input_gradient(critic, x, engine="shared")
    values.sum().backward()
    with pytest.raises(RuntimeError, match=r"retain_graph|second time"):
        inputs.sum().backward()


def test_nothing_is_leaked():
    critic, x = dcgan().double(), samples()
    values, inputs = value_and_input_gradient(critic, x, engine="shared")
    watched = weakref.ref(values)
    LOSSES["loss and r1"](values, inputs).backward()
    del values, inputs
    gc.collect()
    assert watched() is None


def test_nothing_is_written_to():
    critic, x = PIECEWISE_LINEAR["branches"]().double(), samples()
    before = [t.clone() for t in (x, *critic.parameters())]
    values, inputs = value_and_input_gradient(critic, x, engine="shared")
    LOSSES["loss and r1"](values, inputs).backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (x, *critic.parameters())))


def test_auto_takes_what_is_faster():
    critic = dcgan()
    for batch, passes in ((4, 6), (2**15 // 192 + 1, 4)):
        counted = count_convolutions(lambda batch=batch: penalties.r1(critic, samples(torch.float32, batch)).backward())
        assert (counted > 3 * 4) == (passes == 6)


def test_spectral_norm_moves_once():
    critic = PIECEWISE_LINEAR["spectral norm"]().double()
    other, x = copy.deepcopy(critic), samples()
    value_and_input_gradient(critic, x, engine="shared")
    other(x)
    for a, b in zip(critic.buffers(), other.buffers()):
        torch.testing.assert_close(a, b)


def test_autocast():
    critic, x = dcgan(), samples(torch.float32, 8)
    oracle = gradients(copy.deepcopy(critic).double(), x.double(), LOSSES["loss and r1"], "autograd")
    errors = []
    for engine in ("shared", "autograd"):
        with torch.autocast("cpu", torch.bfloat16):
            values, inputs = value_and_input_gradient(critic, x, engine=engine)
            loss = LOSSES["loss and r1"](values.float(), inputs.float())
        assert values.dtype == torch.bfloat16
        assert inputs.dtype == torch.float32
        grads = torch.autograd.grad(loss, list(critic.parameters()))
        assert all(g.dtype == torch.float32 for g in grads)
        errors.append(max(((g.double() - o).abs().max() / o.abs().max()).item() for g, o in zip(grads, oracle[3:])))
    assert errors[0] <= 2 * errors[1] + 0.01


def test_torch_func_grad():
    critic, x = gnn.CriticConv2d(3, 1, 8).double(), samples()
    critic = nn.Sequential(
        gnn.CriticConv2d(3, 4, 3), gnn.CriticLeakyReLU(0.2), nn.Flatten(), nn.Linear(144, 1)
    ).double()
    parameters = dict(critic.named_parameters())

    def penalty(parameters):
        return penalties.r1(lambda x: torch.func.functional_call(critic, parameters, (x,)), x)

    ours = torch.func.grad(penalty)({k: v.detach() for k, v in parameters.items()})
    expected = torch.autograd.grad(
        penalties.r1(critic, x, engine="autograd"), list(parameters.values()), allow_unused=True
    )
    assert_same(list(ours.values()), list(expected), 1e-10)


def test_compiled_critics_are_right():
    critic, x = PIECEWISE_LINEAR["critic layers"]().double(), samples()
    expected = gradients(critic, x, LOSSES["loss and r1"], "autograd")
    compiled = torch.compile(critic, backend="aot_eager")
    values, inputs = value_and_input_gradient(compiled, x)
    loss = LOSSES["loss and r1"](values, inputs)
    assert_same([values, inputs, loss, *torch.autograd.grad(loss, list(critic.parameters()))], expected, 1e-10)


def test_a_compiled_step_is_right():
    critic, x = PIECEWISE_LINEAR["critic layers"]().double(), samples()

    @torch.compile(backend="aot_eager")
    def step(x):
        return 2 * penalties.r1(critic, x)

    step(x).backward()
    ours = [p.grad for p in critic.parameters()]
    expected = torch.autograd.grad(
        2 * penalties.r1(critic, x, engine="autograd"), list(critic.parameters()), allow_unused=True
    )
    assert_same(ours, list(expected), 1e-10)


@pytest.mark.parametrize(
    ("call", "error", "mentions"),
    [
        (lambda c, x: value_and_input_gradient(c, x.int()), TypeError, ("x", "int32")),
        (lambda c, x: value_and_input_gradient(c, "x"), TypeError, ("x", "str")),
        (lambda c, x: value_and_input_gradient(c, x, engine="fast"), ValueError, ("engine", "fast", "auto")),
        (lambda c, x: value_and_input_gradient(c[:4], x), ValueError, ("critic", "(4, 8, 2, 2)", "4 samples")),
        (lambda c, x: value_and_input_gradient(lambda x: (c(x),), x), TypeError, ("critic", "tuple")),
    ],
    ids=["integers", "no tensor", "engine", "several values", "a tuple"],
)
def test_bad_calls(call, error, mentions):
    with pytest.raises(error) as raised:
        call(dcgan().double(), samples())
    assert all(m in str(raised.value) for m in mentions)
