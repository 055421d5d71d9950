"""The aggregate family: what the battery cannot know."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

import genmod
from genmod import _native, backends, nn, ops
from genmod.nn import distributed
from genmod.reference import aggregate as reference
from genmod.specs.aggregate import eager_dip, eager_mmd, eager_total_correlation

NATIVE = pytest.mark.skipif(not _native.loaded, reason=f"no C++ kernels: {_native.reason}")

AVAILABLE = {s.name: s for s in backends.status() if s.name != "cuda"}
every_backend = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(name, marks=pytest.mark.skipif(not s.available, reason=f"{name}: {s.reason}"))
        for name, s in AVAILABLE.items()
    ],
)


def posteriors(batch: int, dims: int, seed: int = 0, dtype: torch.dtype = torch.double) -> tuple[Tensor, ...]:
    """z, mean, logvar, with z drawn from its posterior."""
    generator = torch.Generator().manual_seed(seed)
    mean, logvar, noise = (torch.randn(batch, dims, generator=generator, dtype=torch.double) for _ in range(3))
    logvar = 0.5 * logvar - 1
    return tuple(t.to(dtype) for t in (mean + (0.5 * logvar).exp() * noise, mean, logvar))


def log_density(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mean).square() * (-logvar).exp())


# Total correlation.


def estimate(
    generator: torch.Generator, mean: Tensor, logvar: Tensor, batch: int, estimator: str
) -> tuple[float, float]:
    """The estimate of log q(z), averaged over a batch of a dataset of posteriors, and its true average."""
    chosen = torch.randperm(len(mean), generator=generator)[:batch]
    m, lv = mean[chosen], logvar[chosen]
    z = m + (0.5 * lv).exp() * torch.randn(m.shape, generator=generator, dtype=m.dtype)
    information, _, _ = ops.total_correlation(z, m, lv, dataset_size=len(mean), estimator=estimator)
    density = torch.logsumexp(log_density(z[:, None], mean, logvar).sum(2), 1) - math.log(len(mean))
    return log_density(z, m, lv).sum(1).mean().item() - information.item(), density.mean().item()


def test_stratified_estimate_against_enumeration():
    """q(z) of 512 posteriors exactly, against batches of 64. Published implementations, which put the stratified
    weights in a column instead of on the diagonal, are 1.6 to 11 nats off here."""
    generator = torch.Generator().manual_seed(0)
    mean = 2 * torch.randn(512, 4, generator=generator, dtype=torch.double)
    logvar = torch.full_like(mean, math.log(0.3**2))
    pairs = [estimate(generator, mean, logvar, 64, "mss") for _ in range(150)]
    bias = sum(estimated - exact for estimated, exact in pairs) / len(pairs)
    assert abs(bias) < 0.4
    weighted = [estimate(generator, mean, logvar, 64, "mws") for _ in range(150)]
    assert sum(estimated - exact for estimated, exact in weighted) / len(weighted) < -2  # it is known to be biased


def test_stratified_weights_are_unbiased():
    """Over all ordered batches of a small dataset that begin with one sample, the weight of every sample averages to
    1/N, which makes the estimate of q(z), not of its logarithm, exact."""
    size, batch = 5, 3
    for first in range(size):
        weights = torch.zeros(size, dtype=torch.double)
        others = list(itertools.permutations([n for n in range(size) if n != first], batch - 1))
        for rest in others:
            # One-hot densities read the weights off: sample n alone has density 1, as seen from the first row.
            for place, n in enumerate((first, *rest)):
                mean = torch.full((batch, 1), 100.0, dtype=torch.double)
                mean[place] = 0.0
                z = torch.zeros(1, 1, dtype=torch.double)
                logvar = torch.full_like(mean, -math.log(2 * math.pi))
                top, inverse = torch.ops.genmod.total_correlation(z, mean, logvar, size, "mss", 0)[3][:, 0, -1]
                weights[n] += 2**top / inverse / (batch - 1)  # the sum is relative to the weight 1/M of most pairs
        torch.testing.assert_close(weights / len(others), torch.full_like(weights, 1 / size), rtol=1e-9, atol=0)


@pytest.mark.parametrize("estimator", ["mss", "mws"])
@pytest.mark.parametrize(("batch", "dims"), [(64, 10), (7, 1), (130, 3)])
def test_terms_add_up_to_the_kl(estimator, batch, dims):
    z, mean, logvar = posteriors(batch, dims)
    zero = torch.zeros_like(z)
    kl = (log_density(z, mean, logvar) - log_density(z, zero, zero)).sum(1).mean()
    terms = ops.total_correlation(z, mean, logvar, dataset_size=1000, estimator=estimator)
    torch.testing.assert_close(sum(terms), kl, rtol=1e-12, atol=1e-12)
    single = ops.total_correlation(z.float(), mean.float(), logvar.float(), dataset_size=1000, estimator=estimator)
    torch.testing.assert_close(sum(single).double(), kl, rtol=1e-5, atol=1e-5)


def test_one_dimension_has_no_total_correlation():
    z, mean, logvar = (t.requires_grad_() for t in posteriors(20, 1))
    correlation = ops.total_correlation(z, mean, logvar, dataset_size=99)[1]
    assert abs(correlation) < 1e-12
    assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(correlation, (z, mean, logvar)))


def test_a_sample_alone():
    z, mean, logvar = posteriors(1, 4)
    information, correlation, _ = ops.total_correlation(z, mean, logvar, dataset_size=60, estimator="mws")
    torch.testing.assert_close(information.item(), math.log(60))
    torch.testing.assert_close(correlation.item(), 3 * math.log(60))  # one weight for the joint, four for the marginals


@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_far_samples_and_narrow_posteriors_stay_finite(dtype):
    z, mean, logvar = posteriors(40, 6, dtype=dtype)
    mean = 50 * mean
    z, logvar = mean + z, logvar - 8
    inputs = [t.clone().requires_grad_() for t in (z, mean, logvar)]
    terms = ops.total_correlation(*inputs, dataset_size=10**6)
    found = torch.autograd.grad(sum(terms), inputs)
    oracle = [t.double().requires_grad_() for t in (z, mean, logvar)]
    expected = eager_total_correlation(*oracle, dataset_size=10**6)
    for t, e in zip((*terms, *found), (*expected, *torch.autograd.grad(sum(expected), oracle))):
        torch.testing.assert_close(t.double(), e, rtol=1e-4, atol=1e-4 * e.abs().max().item())


@every_backend
@pytest.mark.parametrize("estimator", ["mss", "mws"])
@pytest.mark.parametrize("distance", [1e3, 1e6])
def test_gradients_a_million_standard_deviations_out(backend, estimator, distance):
    """The rounding of a log-density in float32, at 1e12 some 6e4, is far more than what makes one term of a sum larger
    than the others: a weight made with a log of the sum overflowed."""
    z, mean, logvar = posteriors(9, 6, dtype=torch.float32)
    z = distance * (z + 1)

    def results(dtype, backend):
        inputs = [t.detach().to(dtype).requires_grad_() for t in (z, mean, logvar)]
        with genmod.backend(backend):
            terms = ops.total_correlation(*inputs, dataset_size=10**6, estimator=estimator)
            found = torch.autograd.grad(sum(w * t for w, t in zip((1, 6, 2), terms)), inputs)
        return [t.detach().double() for t in (*terms, *found)]

    for t, e in zip(results(torch.float32, backend), results(torch.double, "reference")):
        torch.testing.assert_close(t, e, rtol=1e-4, atol=1e-4 * e.abs().max().item())


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_where_no_density_is_above_zero(backend, dtype):
    """log 0 is -inf, and what is made of it is what it is in the reference, not that of a small number."""
    z, mean, logvar = posteriors(5, 2, dtype=dtype)
    mean[:, 1] = float("inf")
    inputs = [t.requires_grad_() for t in (z, mean, logvar)]
    with genmod.backend(backend):
        information, correlation, kl = ops.total_correlation(*inputs, dataset_size=50)
        assert information.isnan() and correlation.isnan() and kl == -float("inf")
        assert torch.autograd.grad(kl, z)[0].isnan().any()


@every_backend
def test_double_precision_has_its_own_range(backend):
    """A log-density of -1e60 is a number there."""
    z, mean = (torch.tensor([[a], [b]], dtype=torch.double) for a, b in ((-1e30, -1.4e30), (1.5e30, -2.9e29)))
    with genmod.backend(backend):
        terms = ops.total_correlation(z, mean, torch.zeros_like(z), dataset_size=2)
    expected = eager_total_correlation(z, mean, torch.zeros_like(z), dataset_size=2)
    torch.testing.assert_close(terms, expected, rtol=1e-12, atol=1e-12 * 1e60)


def test_second_derivatives_of_a_penalty():
    """Through a real use: the norm of the gradient of the loss, differentiated again."""
    z, mean, logvar = (t.requires_grad_() for t in posteriors(9, 3))

    def penalty(function):
        loss = sum(w * t for w, t in zip((1, 6, 2), function(z, mean, logvar, dataset_size=50)))
        grads = torch.autograd.grad(loss, (z, mean, logvar), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), (z, mean, logvar))

    torch.testing.assert_close(penalty(ops.total_correlation), penalty(eager_total_correlation))


@NATIVE
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_on_any_number_of_threads(threads):
    z, mean, logvar = posteriors(700, 24, dtype=torch.float32)

    def results():
        inputs = [t.clone().requires_grad_() for t in (z, mean, logvar)]
        loss = sum(ops.total_correlation(*inputs, dataset_size=5000)) + ops.mmd(*inputs[:2])
        loss = loss + ops.dip(mean.repeat(1, 4).requires_grad_(), logvar.repeat(1, 4), kind="ii")
        loss = loss + ops.dip(*inputs[1:], kind="ii")
        return loss.detach(), *torch.autograd.grad(loss, inputs)

    before = torch.get_num_threads()
    expected = results()
    try:
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(results(), expected))
    finally:
        torch.set_num_threads(before)


@NATIVE
@pytest.mark.parametrize("op", ["total_correlation", "mmd"])
def test_memory_is_that_of_the_latents(op):
    """Forward and backward together stay below a few dozen copies of the inputs; one batch x batch x latent tensor
    would be a thousand."""
    from genmod.measure import peak_bytes

    z, mean, logvar = (t.requires_grad_() for t in posteriors(2048, 16, dtype=torch.float32))
    inputs = (z, mean, logvar) if op == "total_correlation" else (z, mean)
    options = {"dataset_size": 10**5} if op == "total_correlation" else {}

    def step():
        outputs = getattr(ops, op)(*inputs, **options)
        torch.autograd.grad(outputs[1] if isinstance(outputs, tuple) else outputs, inputs)

    assert peak_bytes(step, torch.device("cpu")) < 40 * z.numel() * 4


@pytest.mark.parametrize("op", ["total_correlation", "mmd"])
def test_memory_of_second_derivatives(op):
    """A few chunks of rows at a time: one batch x batch x latent tensor would be twice the bound, and autograd used to
    keep a dozen."""
    from genmod.measure import peak_bytes

    inputs = [t.requires_grad_() for t in posteriors(1536, 16, dtype=torch.float32)][: 3 if op[0] == "t" else 2]
    options = {"dataset_size": 10**5} if op == "total_correlation" else {}

    def step():
        outputs = getattr(ops, op)(*inputs, **options)
        grads = torch.autograd.grad(outputs[1] if isinstance(outputs, tuple) else outputs, inputs, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)

    assert peak_bytes(step, torch.device("cpu")) < 1536 * 1536 * 16 * 4 / 2


def test_derivatives_do_not_depend_on_the_chunks(monkeypatch):
    """Second derivatives, and third ones, which go through the second ones' graph."""
    inputs = [t.requires_grad_() for t in posteriors(9, 3)]

    def derivatives():
        loss = sum(w * t for w, t in zip((1, 6, 2), ops.total_correlation(*inputs, dataset_size=50)))
        loss = loss + ops.mmd(*inputs[:2])
        found = []
        for _ in range(3):
            grads = torch.autograd.grad(loss, inputs, create_graph=True)
            loss = sum(g.square().sum() for g in grads)
            found += grads
        return found

    whole = derivatives()
    monkeypatch.setattr(reference, "_CHUNK", 2 * 9 * 3)
    torch.testing.assert_close(derivatives(), whole)


@pytest.mark.large
def test_a_large_batch_in_under_a_gigabyte():
    code = (
        "import resource, torch; from genmod import ops\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20\n"
        "inputs = [torch.randn(16384, 64).requires_grad_() for _ in range(3)]; before = peak()\n"
        "torch.autograd.grad(sum(ops.total_correlation(*inputs, dataset_size=10**6)), inputs); print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.0


# Maximum mean discrepancy.


def test_mmd_of_two_points():
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    for scale in (0.5, 2.0):
        width = 4 * scale
        imq = ops.mmd(x, y, scales=(scale,), unbiased=False)
        torch.testing.assert_close(imq.item(), 2 - 2 * width / (width + 25), rtol=1e-6, atol=0)
        rbf = ops.mmd(x, y, kernel="rbf", scales=(scale,), unbiased=False)
        torch.testing.assert_close(rbf.item(), 2 - 2 * math.exp(-25 / width), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_unbiased_mmd_is_unbiased(kernel):
    """Of two samples of one distribution it averages to zero, and the biased one does not."""
    generator = torch.Generator().manual_seed(0)
    draws = [[torch.randn(12, 3, generator=generator) for _ in range(2)] for _ in range(400)]
    for unbiased in (True, False):
        values = torch.stack([ops.mmd(*pair, kernel=kernel, unbiased=unbiased) for pair in draws]).double()
        distance = values.mean().abs() / (values.std() / len(values) ** 0.5)
        assert distance < 4 if unbiased else distance > 20


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_points_that_nearly_coincide_keep_their_digits(kernel):
    """A distance from a matrix product, x² + y² - 2xy, has none left here."""
    generator = torch.Generator().manual_seed(0)
    x = 1000 + torch.randn(30, 8, generator=generator)
    y = x + 1e-2 * torch.randn(30, 8, generator=generator)
    options = {"kernel": kernel, "scales": (1e-5, 1e-4), "unbiased": False}
    exact = eager_mmd(x.double(), y.double(), **options)
    torch.testing.assert_close(ops.mmd(x, y, **options).double(), exact, rtol=1e-5, atol=0)


def test_distant_points_give_zero_not_nan():
    x = torch.tensor([[1e25, 0.0], [0.0, 1e25]]).requires_grad_()
    y = torch.tensor([[-1e25, 0.0], [0.0, float("inf")]])
    for kernel in ("imq", "rbf"):
        value = ops.mmd(x, y[:1], kernel=kernel, unbiased=False)
        assert value.isfinite()
        assert torch.autograd.grad(value, x)[0].isfinite().all()


@every_backend
@pytest.mark.parametrize("kernel", ["imq", "rbf"])
@pytest.mark.parametrize("unbiased", [False, True])
def test_a_point_that_is_not_finite_shows(backend, kernel, unbiased):
    """Also where its distance to itself, inf - inf, is the only one that is not a number, and does not count."""
    x, y = torch.randn(5, 3), torch.randn(4, 3)
    x[1, 2], y[3, 0] = float("inf"), -float("inf")
    with genmod.backend(backend):
        assert ops.mmd(x, y, kernel=kernel, unbiased=unbiased).isnan()


@every_backend
def test_gradients_of_what_is_not_given_are_empty(backend):
    """Below the checks, a caller may ask for them; every backend has the shapes that the fake promises."""
    x, y = torch.randn(5, 3), torch.randn(4, 3)
    with genmod.backend(backend):
        found = torch.ops.genmod.mmd_backward(torch.ones(()), x, y, None, None, 0, 0, "imq", [1.0], True, 15)
    assert [tuple(g.shape) for g in found] == [(5, 3), (4, 3), (0,), (0,)]


# DIP-VAE.


@every_backend
def test_dip_of_a_known_covariance(backend):
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    mean = signs @ torch.tensor([[2.0, 0.0], [1.0, 3.0]]) + 5  # covariance [[5, 3], [3, 9]]
    logvar = torch.full((4, 2), math.log(2.0))
    with genmod.backend(backend):
        value = ops.dip(mean, kind="i", lambda_od=1.0, lambda_d=0.1)
        torch.testing.assert_close(value.item(), 2 * 9 + 0.1 * (16 + 64))
        value = ops.dip(mean, logvar, kind="ii", lambda_od=1.0, lambda_d=0.1)
        torch.testing.assert_close(value.item(), 2 * 9 + 0.1 * (36 + 100))


@NATIVE
@pytest.mark.parametrize(("batch", "dims"), [(1100, 40), (130, 200), (65, 33)])
def test_dip_across_the_cuts_of_the_batch_and_of_the_covariance(batch, dims):
    inputs = [t.requires_grad_() for t in posteriors(batch, dims, dtype=torch.float32)[1:]]
    oracle = [t.detach().double().requires_grad_() for t in inputs]
    value, expected = ops.dip(*inputs, kind="ii"), eager_dip(*oracle, kind="ii")
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    found, expected = torch.autograd.grad(value, inputs), torch.autograd.grad(expected, oracle)
    for f, e in zip(found, expected):
        torch.testing.assert_close(f.double(), e, rtol=1e-4, atol=1e-6 * e.abs().max().item())


@every_backend
def test_an_average_far_from_the_spread_costs_dip_no_digits(backend):
    """The second moment less the squared average, as the paper's code has the covariance, has none left here."""
    mean = torch.randn(40, 3, dtype=torch.double)
    # What float32 holds of the shifted means, not of the means.
    shifted = (mean + 4096).float()
    expected = ops.dip(shifted.double() - 4096, kind="i")
    with genmod.backend(backend):
        torch.testing.assert_close(ops.dip(shifted, kind="i").double(), expected, rtol=1e-5, atol=0)
    assert (eager_dip(shifted, kind="i").double() / expected - 1).abs() > 0.1


@every_backend
def test_gradients_of_dip_that_nobody_wants_are_empty(backend):
    mean, moments = torch.randn(5, 3), torch.zeros(4, 3)
    with genmod.backend(backend):
        for logvar, wanted, shapes in ((None, 3, [(5, 3), (0,)]), (mean, 2, [(0,), (5, 3)]), (mean, 0, [(0,), (0,)])):
            found = torch.ops.genmod.dip_backward(torch.ones(()), mean, logvar, moments, 1.0, 1.0, wanted)
            assert [tuple(g.shape) for g in found] == shapes


def test_third_derivatives_of_dip():
    def derivatives(op):
        inputs = [t.requires_grad_() for t in posteriors(6, 3)[1:]]
        loss, found = op(*inputs, kind="ii"), []
        for _ in range(3):
            grads = torch.autograd.grad(loss, inputs, create_graph=True)
            loss = sum(g.square().sum() for g in grads)
            found += grads
        return found

    torch.testing.assert_close(derivatives(ops.dip), derivatives(eager_dip))


def test_default_factors_of_dip():
    mean, logvar = torch.randn(8, 3), torch.randn(8, 3)
    torch.testing.assert_close(ops.dip(mean, lambda_od=2.0), ops.dip(mean, lambda_od=2.0, lambda_d=20.0))
    second = {"kind": "ii", "lambda_od": 2.0}
    torch.testing.assert_close(ops.dip(mean, logvar, **second), ops.dip(mean, logvar, **second, lambda_d=2.0))


# Modes that go around autograd as usual.


def model(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    information, correlation, kl = ops.total_correlation(z, mean, logvar, dataset_size=200)
    return information + 4 * correlation + kl + ops.mmd(z, mean) + ops.dip(mean, logvar, kind="ii")


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_torch_func_grad(compiled):
    inputs = posteriors(8, 3)
    gradient = torch.func.grad(model, argnums=(0, 1, 2))
    if compiled:
        torch._dynamo.reset()
        gradient = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    leaves = [t.clone().requires_grad_() for t in inputs]
    torch.testing.assert_close(gradient(*inputs), torch.autograd.grad(model(*leaves), leaves))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_without_graph_breaks(backend):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for batch in (6, 6, 9):
        results = []
        for function in (model, compiled):
            leaves = [t.requires_grad_() for t in posteriors(batch, 4)]
            value = function(*leaves)
            results.append((value, *torch.autograd.grad(value, leaves)))
        torch.testing.assert_close(results[0], results[1])


# Modules, and batches spread over processes.


def test_beta_tcvae_loss():
    z, mean, logvar = posteriors(16, 4)
    reconstruction = torch.tensor(90.0, dtype=torch.double)
    plain, parts = nn.BetaTCVAELoss(1000, 1.0, 1.0, 1.0)(reconstruction, z, mean, logvar)
    zero = torch.zeros_like(z)
    kl = (log_density(z, mean, logvar) - log_density(z, zero, zero)).sum(1).mean()
    torch.testing.assert_close(plain, 90 + kl)
    loss, _ = nn.BetaTCVAELoss(1000, 2.0, 6.0, 0.5)(reconstruction, z, mean, logvar)
    expected = 2 * parts["mutual_information"] + 6 * parts["total_correlation"] + 0.5 * parts["dimension_kl"] + 90
    torch.testing.assert_close(loss, expected)
    assert "beta=6.0" in repr(nn.BetaTCVAELoss(1000))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: nn.TotalCorrelation(0), "dataset_size"),
        (lambda: nn.TotalCorrelation(10, estimator="mc"), "estimator"),
        (lambda: nn.MMD(kernel="linear"), "kernel"),
        (lambda: nn.MMD(scales=(0.0,)), "scales"),
        (lambda: nn.DIP(kind="iii"), "kind"),
        (lambda: nn.DIP(lambda_od=-1.0), "lambda_od"),
    ],
)
def test_modules_check_their_options_at_once(make, match):
    with pytest.raises(ValueError, match=match):
        make()


PROCESSES, ROWS, DIMS = 2, 5, 3


def losses(group) -> dict[str, torch.nn.Module]:
    return {
        "mss": nn.TotalCorrelation(400, process_group=group),
        "mws": nn.TotalCorrelation(400, estimator="mws", process_group=group),
        "imq": nn.MMD(process_group=group),
        "rbf": nn.MMD(kernel="rbf", unbiased=False, process_group=group),
        "dip i": nn.DIP(process_group=group),
        "dip ii": nn.DIP(kind="ii", process_group=group),
    }


def value_and_gradients(name: str, loss: torch.nn.Module, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """A loss, its gradients, and those of a function of them."""
    leaves = [t.clone().requires_grad_() for t in inputs][: {"m": 3, "i": 2, "r": 2, "d": 2}[name[0]]]
    used = leaves[:1] if name == "dip i" else leaves
    value = loss(*used)
    value = sum(w * t for w, t in zip((1, 6, 2), value)) if isinstance(value, tuple) else value
    grads = torch.autograd.grad(value, used, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in grads), used)
    return value.detach(), *(g.detach() for g in grads), *second


def work(rank: int, address: str, errors) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=PROCESSES)
    try:
        everyone = posteriors(PROCESSES * ROWS, DIMS)
        mine = [t[rank * ROWS : (rank + 1) * ROWS] for t in everyone]
        for name, loss in losses(dist.group.WORLD).items():
            value, *grads = value_and_gradients(name, loss, mine)
            expected, *whole = value_and_gradients(name, losses(None)[name], list(everyone))
            torch.testing.assert_close(value, expected, msg=lambda m, name=name: f"{name}: {m}")
            first, second = grads[: len(grads) // 2], grads[len(grads) // 2 :]
            for order, found in ((1, first), (2, second)):
                # Each process's backward has the gradient of the sum of all R equal losses: R times that of one. The
                # penalties on the processes' parts of it are R² times the parts of the whole one's.
                for g, w in zip(found, whole[: len(first)] if order == 1 else whole[len(first) :]):
                    part = PROCESSES**order * w[rank * ROWS : (rank + 1) * ROWS]
                    torch.testing.assert_close(g, part, msg=lambda m, name=name, o=order: f"{name}, order {o}: {m}")
        module = torch.nn.Linear(DIMS, DIMS).double()
        parallel = torch.nn.parallel.DistributedDataParallel(module)
        parallel_loss = nn.MMD(process_group=dist.group.WORLD)(parallel(mine[0]), mine[1])
        parallel_loss.backward()
        found = module.weight.grad.clone()
        module.zero_grad()
        ops.mmd(module(everyone[0]), everyone[1]).backward()
        torch.testing.assert_close(found, module.weight.grad, msg="not what DistributedDataParallel wants")
        with pytest.raises(ValueError, match=r"z: got shapes .* expected equal"):
            nn.TotalCorrelation(400, process_group=dist.group.WORLD)(*(t[: ROWS - rank] for t in mine))
        with pytest.raises(ValueError, match="dataset_size: got 7, expected at least the batch, which is 10"):
            nn.TotalCorrelation(7, process_group=dist.group.WORLD)(*mine)
    except BaseException as error:
        errors.put(f"rank {rank}: {type(error).__name__}: {error}")
        raise
    finally:
        dist.destroy_process_group()


def work_in_half_precision(rank: int, address: str, errors) -> None:
    """Three processes, of which each rounds its part once: rounded again at every sum, small parts would be
    lost."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=3)
    try:
        for dtype in (torch.bfloat16, torch.float16):
            rows = torch.ones(1, 2, dtype=dtype, requires_grad=True)
            top = (1 / torch.finfo(dtype).eps, 0.5, 0.5)  # one process's part: a half is rounded away
            part = distributed.gather(rows, dist.group.WORLD) * top[rank]
            (found,) = torch.autograd.grad(part.sum(), rows)
            assert found.dtype == dtype and torch.equal(found, torch.full_like(found, top[0] + 1)), found
            everyone = posteriors(3 * ROWS, DIMS)
            mine = [t[rank * ROWS : (rank + 1) * ROWS].to(dtype) for t in everyone]
            for name, loss in losses(dist.group.WORLD).items():
                value, *grads = value_and_gradients(name, loss, mine)
                whole = [t.to(dtype).double() for t in everyone]
                expected, *exact = value_and_gradients(name, losses(None)[name], whole)
                torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
                for g, e in zip(grads[: len(grads) // 2], exact):
                    e = 3 * e[rank * ROWS : (rank + 1) * ROWS]
                    error = (g.double() - e).abs().max() / e.abs().max()
                    assert g.dtype == dtype and error < 4 * torch.finfo(dtype).eps, f"{name}, {dtype}: {error}"
    except BaseException as error:
        errors.put(f"rank {rank}: {type(error).__name__}: {error}")
        raise
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
@pytest.mark.parametrize(("job", "count"), [(work, PROCESSES), (work_in_half_precision, 3)])
def test_processes_are_one(tmp_path, job, count):
    context = multiprocessing.get_context("spawn")
    errors = context.Queue()
    processes = [context.Process(target=job, args=(r, f"file://{tmp_path}/store", errors)) for r in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
    messages = [] if errors.empty() else [errors.get()]
    assert [p.exitcode for p in processes] == [0] * count, messages


@pytest.mark.parametrize("backend", ["reference", "cpp", "triton"])
def test_shares_of_rows_add_up(backend):
    """Some rows against all columns, values and gradients, on every backend."""
    status = {s.name: s for s in genmod.backends.status()}[backend]
    if not status.available or (backend == "triton" and torch.cuda.is_available()):
        pytest.skip(f"{backend}: {status.reason}")
    inputs = posteriors(7, 3)
    with genmod.backend(backend):
        for call, whole in ((share_of_terms, terms_of_all), (share_of_mmd, mmd_of_all)):
            leaves = [t.clone().requires_grad_() for t in inputs]
            value = call(leaves, 0, 4) + call(leaves, 4, 7)
            expected_leaves = [t.clone().requires_grad_() for t in inputs]
            expected = whole(expected_leaves)
            torch.testing.assert_close(value, expected)
            found = torch.autograd.grad(value, leaves, allow_unused=True)
            torch.testing.assert_close(found, torch.autograd.grad(expected, expected_leaves, allow_unused=True))


def share_of_terms(inputs: list[Tensor], first: int, last: int) -> Tensor:
    from genmod.ops.aggregate import total_correlation_rows

    z, mean, logvar = inputs
    terms = total_correlation_rows(z[first:last], mean, logvar, first, dataset_size=100, estimator="mss")
    return sum(w * t for w, t in zip((1, 6, 2), terms))


def terms_of_all(inputs: list[Tensor]) -> Tensor:
    return sum(w * t for w, t in zip((1, 6, 2), ops.total_correlation(*inputs, dataset_size=100)))


def share_of_mmd(inputs: list[Tensor], first: int, last: int) -> Tensor:
    from genmod.ops.aggregate import mmd_rows

    x, y = inputs[:2]
    options = {"kernel": "imq", "scales": (0.5, 1.0, 2.0), "unbiased": True}
    return mmd_rows(x[first:last], y[first:last], x, y, first, first, **options)


def mmd_of_all(inputs: list[Tensor]) -> Tensor:
    return ops.mmd(*inputs[:2], scales=(0.5, 1.0, 2.0))
