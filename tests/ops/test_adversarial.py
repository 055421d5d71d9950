"""The adversarial family: what the battery cannot know."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import genmod
from genmod import _native, backends, nn, ops
from genmod.ops.adversarial import KINDS

NATIVE = pytest.mark.skipif(not _native.loaded, reason=f"no C++ kernels: {_native.reason}")
BACKENDS = ["reference", pytest.param("cpp", marks=NATIVE), "triton"]


@pytest.fixture
def backend(request):
    """One backend, forced, on CPU tensors."""
    status = {s.name: s for s in backends.status()}[request.param]
    if not status.available or (request.param == "triton" and torch.cuda.is_available()):
        pytest.skip(f"{request.param}: {status.reason}")
    with genmod.backend(request.param):
        yield request.param


every_backend = pytest.mark.parametrize("backend", BACKENDS, indirect=True)


def softplus(t: float) -> float:
    return max(t, 0.0) + math.log1p(math.exp(-abs(t)))


# By hand: real = (2, -1), fake = (0.5, 3).
CRITIC = {
    "non_saturating": (softplus(-2) + softplus(1)) / 2 + (softplus(0.5) + softplus(3)) / 2,
    "saturating": (softplus(-2) + softplus(1)) / 2 + (softplus(0.5) + softplus(3)) / 2,
    "hinge": (0 + 2) / 2 + (1.5 + 4) / 2,
    "least_squares": (0.5 + 2) / 2 + (0.125 + 4.5) / 2,
    "wasserstein": 1.75 - 0.5,
    "relativistic": (softplus(-1.5) + softplus(4)) / 2,
}
GENERATOR = {
    "non_saturating": (softplus(-0.5) + softplus(-3)) / 2,
    "saturating": -(softplus(0.5) + softplus(3)) / 2,
    "hinge": -1.75,
    "least_squares": (0.125 + 2) / 2,
    "wasserstein": -1.75,
    "relativistic": (softplus(1.5) + softplus(-4)) / 2,
}


@every_backend
@pytest.mark.parametrize("kind", KINDS)
def test_known_values(backend, kind):
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    assert ops.critic_loss(real=real, fake=fake, kind=kind).item() == pytest.approx(CRITIC[kind], rel=1e-6)
    assert ops.generator_loss(real=real, fake=fake, kind=kind).item() == pytest.approx(GENERATOR[kind], rel=1e-6)


@every_backend
def test_lecam_is_the_paper_s(backend):
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5])
    value = ops.lecam(real=real, fake=fake, real_average=torch.tensor(1.0), fake_average=torch.tensor([-0.5]))
    assert value.item() == pytest.approx((2.5**2 + 0.5**2) / 2 + 0.5**2, rel=1e-6)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_softplus_is_exact_for_large_logits(backend, dtype):
    logits = torch.tensor([-80.0, -40.0, -20.5, -15.0, -1e-4, 0.0, 1e-4, 15.0, 20.5, 40.0, 88.0, 500.0]).to(dtype)
    logits.requires_grad_()
    loss = ops.generator_loss(fake=logits, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    exact = [softplus(-x) for x in logits.tolist()]
    slopes = [-math.exp(-softplus(x)) for x in logits.tolist()]
    epsilon = torch.finfo(loss.dtype).eps
    torch.testing.assert_close(loss.double(), torch.tensor(exact, dtype=torch.float64), rtol=8 * epsilon, atol=1e-37)
    expected = torch.tensor(slopes, dtype=torch.float64).to(dtype)
    torch.testing.assert_close(grad, expected, rtol=8 * torch.finfo(dtype).eps, atol=1e-37)


@every_backend
@pytest.mark.parametrize("kind", KINDS)
def test_not_a_number_and_infinity(backend, kind):
    real, fake = torch.zeros(5), torch.zeros(5)
    real[1], fake[3] = float("nan"), float("nan")
    bad = ops.critic_loss(real=real, fake=fake, kind=kind, reduction="none").isnan()
    assert bad.tolist() == [False, True, False, True, False]
    assert ops.critic_loss(real=real, fake=fake, kind=kind).isnan()
    sure = torch.full((3,), float("inf"))
    # A critic that is right beyond all doubt has nothing left to lose; one that is wrong has everything.
    if kind in ("non_saturating", "saturating", "hinge", "relativistic"):
        assert ops.critic_loss(real=sure, fake=torch.zeros(3), kind=kind) <= 1
        assert ops.critic_loss(real=-sure, fake=torch.zeros(3), kind=kind) == float("inf")


@every_backend
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_side_counts_as_zero(backend, kind):
    empty = torch.zeros(0, 2, requires_grad=True)
    loss = ops.critic_loss(real=empty, fake=empty, kind=kind)
    assert loss == 0
    (grad,) = torch.autograd.grad(loss, empty, allow_unused=True)
    assert grad.shape == empty.shape
    assert ops.generator_loss(fake=empty, real=empty, kind=kind) == 0
    if kind != "relativistic":
        fake = torch.tensor([0.5, 3.0])
        both = ops.critic_loss(real=torch.tensor([1.0]), fake=fake, kind=kind)
        alone = ops.critic_loss(real=torch.zeros(0), fake=fake, kind=kind)
        other = ops.critic_loss(real=torch.tensor([1.0]), fake=torch.zeros(0), kind=kind)
        torch.testing.assert_close(both, alone + other)


def test_half_precision_is_computed_and_summed_in_float32():
    real, fake = torch.randn(4, 700).half(), torch.randn(4, 700).half()
    loss = ops.critic_loss(real=real, fake=fake)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ops.critic_loss(real=real.float(), fake=fake.float()))


def test_the_gradient_of_a_mean_does_not_underflow_in_half_precision():
    # 1 / 60,000 is subnormal in float16; the derivative is kept in float32 until a scaled loss has multiplied it.
    fake = torch.zeros(60_000, dtype=torch.float16, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.generator_loss(fake=fake) * 65536.0, fake)
    torch.testing.assert_close(grad, torch.full_like(grad, -0.5 * 65536 / 60_000), rtol=1e-3, atol=0)


@every_backend
@pytest.mark.parametrize("kind", KINDS)
def test_two_backward_passes_through_one_graph(backend, kind):
    real, fake = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    loss = ops.critic_loss(real=real, fake=fake, kind=kind)
    first = torch.autograd.grad(loss, (real, fake), retain_graph=True)
    first[0].zero_()
    again = torch.autograd.grad(loss, (real, fake), create_graph=True)
    once_more = torch.autograd.grad(loss, (real, fake))
    for a, b in zip(again, once_more):
        torch.testing.assert_close(a, b)


def test_real_is_only_looked_at_by_the_relativistic_loss():
    fake, real = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)
    for kind in KINDS:
        loss = ops.generator_loss(fake=fake, real=real, kind=kind)
        grad = torch.autograd.grad(loss, (fake, real), allow_unused=True)[1]
        assert (grad is not None) == (kind == "relativistic")


def test_an_r3gan_step_is_that_of_its_paper():
    torch.manual_seed(0)
    critic = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.LeakyReLU(0.2), torch.nn.Linear(8, 1)).double()
    x, z = torch.randn(5, 6).double().requires_grad_(), torch.randn(5, 6).double().requires_grad_()

    def step(loss):
        critic.zero_grad()
        real, fake = critic(x), critic(z)
        penalties = sum(
            torch.autograd.grad(d.sum(), i, create_graph=True)[0].square().sum(1).mean()
            for d, i in ((real, x), (fake, z))
        )
        (loss(real, fake) + 0.5 * penalties).backward()
        return [p.grad.clone() for p in critic.parameters()]

    ours = step(lambda real, fake: ops.critic_loss(real=real, fake=fake, kind="relativistic"))
    stock = step(lambda real, fake: F.softplus(-(real - fake)).mean())
    torch.testing.assert_close(ours, stock)


def test_second_derivatives_through_a_penalty_on_the_loss():
    real, fake = (torch.randn(4, 3, dtype=torch.double, requires_grad=True) for _ in range(2))

    def curvature(loss):
        grads = torch.autograd.grad(loss, (real, fake), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), (real, fake))

    stock = F.softplus(-real).mean() + F.softplus(fake).mean()
    torch.testing.assert_close(curvature(ops.critic_loss(real=real, fake=fake)), curvature(stock))


def test_gradients_of_lecam_s_averages():
    tensors = {name: torch.randn(4, dtype=torch.double) for name in ("real", "fake")}
    averages = [torch.randn((), dtype=torch.double, requires_grad=True) for _ in range(2)]
    torch.autograd.gradcheck(lambda r, f: ops.lecam(**tensors, real_average=r, fake_average=f), averages)


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_and_compile(kind):
    real, fake = torch.randn(5, 2), torch.randn(5, 2)

    def loss(real, fake):
        return ops.critic_loss(real=real, fake=fake, kind=kind)

    torch.testing.assert_close(
        torch.func.grad(loss)(real, fake), torch.autograd.grad(loss(real.requires_grad_(), fake), real)[0]
    )
    each = torch.func.vmap(loss)(real.detach(), fake)
    torch.testing.assert_close(each, torch.stack([loss(r, f) for r, f in zip(real.detach(), fake)]))


def test_compiles_in_one_graph():
    real, fake = (torch.randn(5, 2, requires_grad=True) for _ in range(2))
    compiled = torch.compile(lambda r, f: ops.critic_loss(real=r, fake=f), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        torch.autograd.grad(compiled(real, fake), (real, fake)),
        torch.autograd.grad(ops.critic_loss(real=real, fake=fake), (real, fake)),
    )


@NATIVE
def test_few_logits_of_one_side_take_stock_pytorch():
    few, many = torch.randn(64, requires_grad=True), torch.randn(64, 1, 30, 30, requires_grad=True)
    chosen = {
        (name, kind): genmod.explain(op, **logits, kind=kind).backend
        for kind in ("non_saturating", "hinge", "wasserstein", "relativistic")
        for name, op, logits in (
            ("critic, few", ops.critic_loss, {"real": few, "fake": few}),
            ("critic, many", ops.critic_loss, {"real": many, "fake": many}),
            ("generator, few", ops.generator_loss, {"real": few, "fake": few}),
            ("generator, many", ops.generator_loss, {"real": many, "fake": many}),
        )
    }
    stock = {call for call, backend in chosen.items() if backend == "reference"}
    assert stock == {
        ("critic, few", "wasserstein"),
        ("critic, few", "relativistic"),
        *(("generator, few", kind) for kind in ("non_saturating", "hinge", "wasserstein", "relativistic")),
    }
    with genmod.backend("cpp"):  # demanded, it runs
        assert genmod.explain(ops.generator_loss, fake=few).backend == "cpp"
        kernel = ops.generator_loss(fake=few)
    assert genmod.explain(ops.generator_loss, fake=few.detach()).backend == "cpp"
    torch.testing.assert_close(kernel, ops.generator_loss(fake=few))


# Modules.


@pytest.mark.parametrize("kind", KINDS)
def test_modules_are_the_ops(kind):
    real, fake = torch.randn(6, 1, 2, 2), torch.randn(6, 1, 2, 2)
    assert torch.equal(nn.CriticLoss(kind)(real=real, fake=fake), ops.critic_loss(real=real, fake=fake, kind=kind))
    assert torch.equal(
        nn.GeneratorLoss(kind)(real=real, fake=fake), ops.generator_loss(real=real, fake=fake, kind=kind)
    )
    assert nn.CriticLoss(kind, reduction="none")(real=real, fake=fake).shape == real.shape
    assert repr(nn.CriticLoss(kind)) == f"CriticLoss({kind!r}, reduction='mean')"


def test_modules_refuse_what_they_do_not_know():
    for module in (nn.CriticLoss, nn.GeneratorLoss):
        with pytest.raises(ValueError, match=r"kind.*'wgan'.*wasserstein"):
            module("wgan")
        with pytest.raises(ValueError, match=r"reduction.*'batch'.*mean"):
            module(reduction="batch")
    with pytest.raises(ValueError, match=r"decay.*1\.0.*\[0, 1\)"):
        nn.LeCam(1.0)


def test_lecam_keeps_moving_averages():
    module = nn.LeCam(decay=0.9)
    batches = [(torch.randn(8, 1) + 1, torch.randn(6, 1) - 1) for _ in range(4)]
    real_average = fake_average = None
    for real, fake in batches:
        if real_average is None:
            real_average, fake_average = real.mean(), fake.mean()
        else:
            real_average = 0.9 * real_average + 0.1 * real.mean()
            fake_average = 0.9 * fake_average + 0.1 * fake.mean()
        value = module(real=real, fake=fake)
        expected = (real - fake_average).square().mean() + (fake - real_average).square().mean()
        torch.testing.assert_close(value, expected)
    restored = nn.LeCam(decay=0.9)
    restored.load_state_dict(module.state_dict())
    for again in (module.eval(), restored.eval()):
        again(real=batches[0][0], fake=batches[0][1])
        torch.testing.assert_close(again.real_average, real_average)
        torch.testing.assert_close(again.fake_average, fake_average)


def test_lecam_of_an_empty_batch_moves_nothing():
    module = nn.LeCam()
    module(real=torch.ones(2), fake=torch.ones(2))
    assert torch.isfinite(module(real=torch.zeros(0), fake=torch.ones(2)))
    assert module.real_average == 1 and module.calls == 1


def test_lecam_averages_take_no_gradient_and_may_move_before_backward():
    module = nn.LeCam()
    real, fake = (torch.randn(4, requires_grad=True) for _ in range(2))
    first = module(real=real, fake=fake)
    second = module(real=real, fake=fake)
    grads = torch.autograd.grad(first + second, (real, fake))
    average = fake.detach().mean()
    torch.testing.assert_close(grads[0], (real.detach() - average))
    assert not module.real_average.requires_grad
