"""C++ entry points called past Python's checks: they refuse what does not fit, instead of reading what is not there."""

from __future__ import annotations

import threading

import pytest
import torch

import genmod
from genmod import _native, backends, ops

pytestmark = pytest.mark.skipif(not _native.loaded, reason=f"no C++ kernels: {_native.reason}")

op = torch.ops.genmod
M, IMAGE, WEIGHT, ONE = torch.ones(4, 6), torch.ones(2, 4, 3, 3), torch.ones(4, 4, 3, 3), torch.tensor(1.0)
NORM = (None, None, None, None, None)  # residual, weight, bias, scale and shift of a group norm
PLAIN = (0.0, None, 256)  # fixed log-scale, lower bound, bins
HINGE = ("relu", [-1.0, 1.0, 1.0, 1.0, 1.0, 1.0], False)

MALFORMED = {
    "a weight per channel as a row": lambda: op.group_norm_act(
        IMAGE, None, torch.ones(1, 4), *NORM[2:], 2, 1e-5, "relu", 0.0
    ),
    "noise of another shape": lambda: op.reparameterize(M, M, M[:, :3], None, "none"),
    "gradient of a loss per element": lambda: op.gaussian_kl_backward(
        ONE, M, M, None, None, 0.0, "none", "none", 3
    ),
    "gradient of a loss per sample": lambda: op.gaussian_kl_backward(
        ONE[None], M, M, None, None, 0.0, "batch", "none", 3
    ),
    "a packed output with a log-scale beside it": lambda: op.reconstruction_backward(
        ONE, M, M[:, :3], ONE, None, "gaussian", True, *PLAIN, "sum", 3
    ),
    "half a number as an average": lambda: op.adversarial(
        M, M, torch.ones((), dtype=torch.half), None, *HINGE, "mean"
    ),
    "another reduction": lambda: op.adversarial(M, M, None, None, *HINGE, "batchmean"),
    "gradient of adversarial losses": lambda: op.adversarial_backward(ONE, M, M, None, None, *HINGE, "none", 3),
    "no components": lambda: op.logistic_mixture_nll(IMAGE[:, :0], IMAGE[:, :3], None, "sum", 256, -7.0),
    "one bin": lambda: op.logistic_mixture_nll(torch.ones(2, 10, 3, 3), IMAGE[:, :3], None, "sum", 1, -7.0),
    "gradient of a mixture": lambda: op.logistic_mixture_nll_backward(
        ONE, torch.ones(2, 10, 3, 3), IMAGE[:, :3], None, "none", 256, -7.0
    ),
    "logs of another shape": lambda: op.total_correlation_backward(
        ONE, None, None, M, M, M, M, 100, "mss", 0, 7
    ),
    "rows that would overflow": lambda: op.total_correlation(M, M, M, 100, "mss", (1 << 63) - 1),
    "gradient in another dtype": lambda: op.mmd_backward(
        ONE.half(), M, M, None, None, 0, 0, "imq", [1.0], True, 3
    ),
    "moments of another shape": lambda: op.dip_backward(ONE, M, M, M, 1.0, 1.0, 3),
    "log-variances of another batch": lambda: op.dip(M, M[:2], 1.0, 1.0),
    "a row before the first": lambda: op.mmd(M, M, None, None, -1, 0, "imq", [1.0], True),
    "no groups": lambda: op.group_norm_act(IMAGE, *NORM, 0, 1e-5, "silu", 0.01),
    "groups that do not divide": lambda: op.group_norm_act(IMAGE, *NORM, 3, 1e-5, "silu", 0.01),
    "a vector to normalise": lambda: op.group_norm_act(M[0], *NORM, 1, 1e-5, "silu", 0.01),
    "a short weight": lambda: op.group_norm_act(IMAGE, None, ONE[None], None, None, None, 2, 1e-5, "silu", 0.01),
    "short statistics": lambda: op.batch_norm_act(
        IMAGE, None, ONE[None], ONE[None], None, None, False, 1e-5, "relu", 0.01
    ),
    "a residual of as many elements": lambda: op.group_norm_act(
        IMAGE, IMAGE.view(4, 2, 3, 3), None, None, None, None, 2, 1e-5, "silu", 0.01
    ),
    "a short bias": lambda: op.upsample_conv2d(IMAGE, WEIGHT, ONE[None], 1),
    "groups beyond all channels": lambda: op.upsample_conv2d(IMAGE, WEIGHT, None, 1 << 62),
}  # fmt: skip


@pytest.mark.parametrize("call", MALFORMED.values(), ids=MALFORMED)
def test_malformed_arguments_are_refused(call):
    with pytest.raises(RuntimeError, match="genmod: "):
        call()


def test_an_upsampling_of_nothing_has_gradients_of_zero():
    x, weight = torch.ones(2, 4, 0, 3), torch.ones(5, 4, 3, 3)
    _, d_weight, d_bias = op.upsample_conv2d_backward(torch.ones(2, 5, 0, 6), x, weight, 1, 7)
    assert not d_weight.any() and not d_bias.any()
    d_x, _, _ = op.upsample_conv2d_backward(torch.ones(2, 0, 6, 6), IMAGE, torch.ones(0, 4, 3, 3), 1, 7)
    assert d_x.shape == IMAGE.shape and not d_x.any()


def test_strides_of_empty_tensors_may_be_anything():
    x = torch.empty(1).as_strided((0, 3, 5, 2), (1 << 62,) * 4)
    assert op.reparameterize(x, x, x, None, "none").shape == x.shape


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_not_finite_does_not_get_into_the_gradient_of_a_constant_map(value, layout):
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout)
    x[1, 2, 3, 4] = value
    with genmod.backend("cpp"):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        (found,) = torch.autograd.grad(ops.bias_act(leaf, activation="identity").sum(), leaf)
        assert torch.equal(found, torch.ones_like(x))
        mean, var = torch.zeros(3), torch.ones(3)
        y = ops.batch_norm_act(leaf, mean, var, eps=1e-12, activation="identity")
        (found,) = torch.autograd.grad(y.sum(), leaf)
        assert torch.equal(found, torch.ones_like(x))


@pytest.mark.parametrize("activation", ["silu", "sigmoid", "tanh", "gelu"])
def test_activations_have_a_value_wherever_the_exponential_has(activation):
    x = torch.linspace(-95, 95, 40001)[:, None]  # e^88.4 to e^88.7 is finite, and above 2^127.5
    with genmod.backend("cpp"):
        leaf = x.clone().requires_grad_()
        y = ops.bias_act(leaf, activation=activation)
        (slope,) = torch.autograd.grad(y.sum(), leaf)
    with genmod.backend("reference"):
        expected = ops.bias_act(x.double(), activation=activation).float()
    torch.testing.assert_close(y.detach(), expected, rtol=1e-5, atol=1e-15)
    assert slope.isfinite().all()


def test_sampling_where_the_scale_is_hardly_finite():
    logvar = torch.linspace(176, 177.4, 4097)[None]
    zero, one = torch.zeros_like(logvar), torch.ones_like(logvar)
    with genmod.backend("cpp"):
        z = ops.reparameterize(zero, logvar, noise=one)
    torch.testing.assert_close(z.double(), (0.5 * logvar.double()).exp(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("loss", [ops.l1, ops.laplace_nll])
def test_a_target_that_is_nan_is_nan_in_the_gradient(backend, loss):
    options = {"log_scale": torch.zeros(())} if loss is ops.laplace_nll else {}
    output = torch.zeros(1, 2, requires_grad=True)
    with genmod.backend(backend):
        value = loss(output, torch.tensor([[0.5, float("nan")]]), reduction="sum", **options)
        (found,) = torch.autograd.grad(value, output)
    assert found[0, 0].isfinite() and found[0, 1].isnan()


@pytest.mark.parametrize("bias", [torch.bfloat16, torch.float32])
def test_parameters_of_two_dtypes_beside_half_precision(bias):
    x, weight = torch.randn(2, 4, 3, 3).bfloat16(), torch.ones(4, dtype=torch.bfloat16)
    shift, running = torch.ones(4, dtype=bias), torch.ones(4, dtype=torch.bfloat16)
    for call in (
        lambda: ops.group_norm_act(x, 2, weight, shift),
        lambda: ops.batch_norm_act(x, running.clone(), running.clone(), weight, shift, True),
    ):
        taken = call()
        with genmod.backend("reference"):
            torch.testing.assert_close(taken, call(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_a_bounded_log_scale_has_no_gradient_where_the_loss_is_infinite(backend):
    output, target = torch.zeros(1, 2), torch.tensor([[float("inf")]])
    logvar = torch.full((1, 2), -3.0, requires_grad=True)
    with genmod.backend(backend):
        loss = ops.gaussian_nll(output, target.expand(1, 2), logvar=logvar, min_logvar=-1.0, reduction="sum")
        (found,) = torch.autograd.grad(loss, logvar)
    assert not found.any()


def test_threads_close_the_contexts_that_they_opened():
    opened, closed = threading.Event(), threading.Event()

    def other():
        with genmod.backend("cpp"):
            opened.set()
            closed.wait(30)

    thread = threading.Thread(target=other)
    with genmod.backend("reference"):
        thread.start()
        assert opened.wait(30)
    assert backends.forced() == "cpp"  # what is still open, not what was opened first
    closed.set()
    thread.join()
    assert backends.forced() is None


def test_no_gradient_asked_for_is_none_computed():
    x = torch.randn(2, 4, 5)
    with torch._C._AutoDispatchBelowAutograd():
        found = torch.ops.genmod.bias_act_backward(x, x, torch.randn(4), "relu", 0.01, 1.0, float("inf"), 0)
    assert [t.numel() for t in found] == [0, 0]
