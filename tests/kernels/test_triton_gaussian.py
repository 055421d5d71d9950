"""Triton's gaussian kernels against plain float64 maths: on a GPU, or in Triton's interpreter where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genmod.kernels import gaussian
from genmod.kernels.launch import launch, recording

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SEED = -0x123456789ABCDEF
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
REDUCTIONS = ["none", "batch", "batchmean", "mean", "sum"]


# --- The oracle: the contract's maths in float64, gradients by autograd.


def philox(counters: np.ndarray, key: int) -> list[np.ndarray]:
    """Philox4x32-10 of the 128-bit counters (counter, 0)."""
    mask = np.uint64(0xFFFFFFFF)
    wide = counters.astype(np.uint64)
    c = [wide & mask, wide >> np.uint64(32), np.zeros_like(wide), np.zeros_like(wide)]
    k0, k1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [b >> np.uint64(32) ^ c[1] ^ np.uint64(k0), b & mask, a >> np.uint64(32) ^ c[3] ^ np.uint64(k1), a & mask]
        k0, k1 = k0 + 0x9E3779B9 & 0xFFFFFFFF, k1 + 0xBB67AE85 & 0xFFFFFFFF
    return c


def normals(first: int, count: int, key: int = SEED) -> np.ndarray:
    """Elements first, first + 1, ... of the noise stream; `first` is a multiple of 64."""
    blocks = np.arange(first // 64, (first + count + 63) // 64, dtype=np.int64)
    words = philox(blocks[:, None] * 16 + np.arange(16), key)
    parts = []
    for x, y in (words[:2], words[2:]):
        u = (x.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)).astype(np.float64)
        radius, angle = np.sqrt(-2 * np.log(u)), y.astype(np.float64) * (2 * np.pi / 2**32)
        parts += [radius * np.cos(angle), radius * np.sin(angle)]
    return np.stack(parts, axis=1).reshape(-1)[:count]


def stream(like: Tensor) -> Tensor:
    """The noise of a dense tensor, in its memory order."""
    flat = torch.from_numpy(normals(0, like.numel())).to(like.device)
    return torch.empty_like(like, dtype=torch.float64).copy_(flat.as_strided(like.shape, like.stride()))


def clamped(logvar: Tensor, clamp: str) -> Tensor:
    def softplus(x: Tensor) -> Tensor:
        return torch.logaddexp(x, torch.zeros_like(x))

    if clamp == "hard":
        return logvar.clamp(-30, 20)
    return -30 + softplus(20 - softplus(20 - logvar) + 30) if clamp == "soft" else logvar


def reduced(kl: Tensor, free_bits: float, reduction: str) -> Tensor:
    if free_bits > 0:
        kl = torch.where(kl <= free_bits, torch.full_like(kl, free_bits), kl)
    total = {"none": kl, "batch": kl.flatten(1).sum(1) if kl.dim() > 1 else kl, "sum": kl.sum()}
    total |= {"batchmean": kl.sum() / max(kl.shape[0], 1), "mean": kl.sum() / max(kl.numel(), 1)}
    return total[reduction]


def halves(mean: Tensor, logvar: Tensor | None) -> tuple[Tensor, Tensor]:
    return (mean, logvar) if logvar is not None else mean.chunk(2, 1)


class Oracle:
    """z, KL and their gradients by the inputs, all in float64."""

    def __init__(self, inputs: list[Tensor | None], eps: Tensor | None, free_bits: float, reduction: str, clamp: str):
        self.inputs = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
        mean, raw = halves(*self.inputs[:2])
        logvar = clamped(raw, clamp)
        if eps is not None:
            self.z = mean + (logvar / 2).exp() * eps
        if inputs[2] is None:
            kl = (torch.expm1(logvar) - logvar + mean**2) / 2
        else:
            other, other_raw = halves(*self.inputs[2:])
            delta = logvar - clamped(other_raw, clamp)
            kl = (torch.expm1(delta) - delta + (mean - other) ** 2 * (-clamped(other_raw, clamp)).exp()) / 2
        self.kl = reduced(kl, free_bits, reduction)

    def gradients(self, grad_z: Tensor | None, grad_kl: Tensor | None) -> list[Tensor | None]:
        pairs = [(y, g.double()) for y, g in ((getattr(self, "z", None), grad_z), (self.kl, grad_kl)) if g is not None]
        leaves = [t for t in self.inputs if t is not None]
        outputs, grads = zip(*pairs, strict=True)
        options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
        found = iter(torch.autograd.grad(outputs, leaves, grads, **options))
        return [None if t is None else next(found) for t in self.inputs]


def assert_close(got: Tensor, expected: Tensor, atol: float = 2e-6) -> None:
    """Within `atol` and a few roundings; `atol` stands for the error of intermediate values of order one."""
    rtol = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}[got.dtype]
    assert got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected.detach(), rtol=rtol, atol=atol, equal_nan=True)


# --- Calling the kernels.


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is full of NaN: what a kernel does not write shows."""

    def poisoned(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            fresh = function(*args, **kwargs)
            return fresh.fill_(float("nan")) if fresh.is_floating_point() and fresh.device.type != "meta" else fresh

        return call

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))


def draw(*shape: int, dtype: torch.dtype = torch.float32, spread: float = 1.0) -> Tensor:
    return (spread * torch.randn(shape, dtype=torch.float64)).to(DEVICE, dtype)


def seed_tensor() -> Tensor:
    return torch.tensor(SEED, device=DEVICE)


@pytest.fixture(autouse=True)
def _numbers() -> None:
    torch.manual_seed(0)


def check_sample(
    mean: Tensor,
    logvar: Tensor | None,
    *,
    seeded: bool = True,
    free_bits: float = 0.0,
    reduction: str = "batchmean",
    clamp: str = "none",
    grads: str = "zk",
) -> None:
    """sample_kl and sample_kl_backward against the oracle. `grads` names the incoming gradients that there are."""
    view = halves(mean, logvar)[0]
    noise = None if seeded else draw(*view.shape, dtype=view.dtype)
    random = (noise, seed_tensor() if seeded else None)
    before = [t.clone() for t in (mean, logvar, noise) if t is not None]
    z, kl = gaussian.sample_kl(mean, logvar, *random, free_bits, reduction, clamp)
    eps = noise.double() if noise is not None else stream(z)
    oracle = Oracle([mean, logvar, None, None], eps, free_bits, reduction, clamp)
    atol = 2e-6 if seeded or mean.dtype != torch.float64 else 1e-13
    assert (z.dtype, kl.dtype) == (mean.dtype, torch.float64 if mean.dtype == torch.float64 else torch.float32)
    assert_close(z, oracle.z, atol)
    assert_close(kl, oracle.kl, atol)

    grad_z = draw(*z.shape, dtype=z.dtype) if "z" in grads else None
    grad_kl = draw(*kl.shape, dtype=kl.dtype) if "k" in grads else None
    got = gaussian.sample_kl_backward(grad_z, grad_kl, mean, logvar, *random, free_bits, reduction, clamp, 3)
    for gradient, expected, source in zip(got, oracle.gradients(grad_z, grad_kl), (mean, logvar), strict=False):
        if source is not None:
            assert gradient.dtype == source.dtype
            assert_close(gradient, expected, 4 * atol)
    for tensor, copy in zip((t for t in (mean, logvar, noise) if t is not None), before, strict=True):
        assert torch.equal(tensor, copy)


def check_kl(
    inputs: list[Tensor | None],
    *,
    free_bits: float = 0.0,
    reduction: str = "batchmean",
    clamp: str = "none",
) -> None:
    """gaussian_kl and gaussian_kl_backward against the oracle."""
    oracle = Oracle(inputs, None, free_bits, reduction, clamp)
    atol = 2e-6 if inputs[0].dtype != torch.float64 else 1e-13
    kl = gaussian.gaussian_kl(*inputs, free_bits, reduction, clamp)
    assert_close(kl, oracle.kl, 2 * atol)
    grad = draw(*kl.shape, dtype=kl.dtype)
    got = gaussian.gaussian_kl_backward(grad, *inputs, free_bits, reduction, clamp, 15)
    for gradient, expected, source in zip(got, oracle.gradients(None, grad), inputs, strict=True):
        if source is None:
            assert gradient.shape == (0,)
        else:
            assert gradient.dtype == source.dtype
            assert_close(gradient, expected, 4 * atol)


# --- Values and gradients.


@pytest.mark.parametrize("seeded", [False, True], ids=["given", "seeded"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sample_kl_in_every_dtype(dtype: torch.dtype, seeded: bool) -> None:
    check_sample(draw(3, 43, dtype=dtype), draw(3, 43, dtype=dtype), seeded=seeded, free_bits=0.25, clamp="hard")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gaussian_kl_in_every_dtype(dtype: torch.dtype) -> None:
    check_kl([*(draw(3, 43, dtype=dtype) for _ in range(4))], free_bits=0.25, clamp="hard")
    check_kl([draw(3, 43, dtype=dtype), draw(3, 43, dtype=dtype), None, None], free_bits=0.25, clamp="soft")


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions(reduction: str) -> None:
    check_sample(draw(3, 34, 5), None, reduction=reduction, free_bits=0.5)
    check_kl([draw(3, 34, 5), None, draw(3, 34, 5), None], reduction=reduction, free_bits=0.5)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000])
def test_sizes(size: int) -> None:
    check_sample(draw(size), draw(size))
    check_kl([draw(size, 1), draw(size, 1), None, None], reduction="mean")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)], ids=str)
def test_empty(shape: tuple[int, ...], reduction: str) -> None:
    check_sample(draw(*shape), draw(*shape), reduction=reduction)
    check_kl([draw(*shape) for _ in range(4)], reduction=reduction)


@pytest.mark.parametrize("seeded", [False, True], ids=["given", "seeded"])
def test_many_blocks(seeded: bool) -> None:
    check_sample(draw(3, 1500), draw(3, 1500), seeded=seeded, reduction="batch")


# --- Clamps, free bits, and values that are not finite.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("clamp", ["none", "hard", "soft"])
def test_clamps_far_out(clamp: str, dtype: torch.dtype) -> None:
    logvar = torch.linspace(-70, 70, 211, dtype=dtype, device=DEVICE).view(1, -1)
    inputs = [torch.zeros_like(logvar), logvar, torch.zeros_like(logvar), logvar.flip(1)]
    eps = draw(*logvar.shape, dtype=dtype)
    oracle = Oracle([*inputs[:2], None, None], eps.double(), 0.0, "none", clamp)
    z, kl = gaussian.sample_kl(*inputs[:2], eps, None, 0.0, "none", clamp)
    # The rounding of logvar itself, times the derivative of e^x.
    tolerance = {"rtol": 8e-6 if dtype == torch.float32 else 2e-14, "atol": 4e-6 if dtype == torch.float32 else 1e-14}
    torch.testing.assert_close(z.double(), oracle.z.detach(), **tolerance)
    torch.testing.assert_close(kl.double(), oracle.kl.detach(), **tolerance)
    for grads in ((torch.ones_like(z), None), (None, torch.ones_like(kl))):
        got = gaussian.sample_kl_backward(*grads, *inputs[:2], eps, None, 0.0, "none", clamp, 3)
        for gradient, expected in zip(got, oracle.gradients(*grads), strict=False):
            torch.testing.assert_close(gradient.double(), expected, **tolerance)
    if clamp != "none":
        oracle = Oracle(inputs, None, 0.0, "none", clamp)
        kl = gaussian.gaussian_kl(*inputs, 0.0, "none", clamp)
        torch.testing.assert_close(kl.double(), oracle.kl.detach(), **tolerance)
        got = gaussian.gaussian_kl_backward(torch.ones_like(kl), *inputs, 0.0, "none", clamp, 15)
        for gradient, expected in zip(got, oracle.gradients(None, torch.ones_like(kl)), strict=True):
            torch.testing.assert_close(gradient.double(), expected, **tolerance)


def test_near_the_prior_nothing_cancels() -> None:
    mean, logvar = draw(1, 64, spread=1e-4), draw(1, 64, spread=1e-4)
    kl = gaussian.gaussian_kl(mean, logvar, None, None, 0.0, "none", "none")
    expected = Oracle([mean, logvar, None, None], None, 0.0, "none", "none").kl
    torch.testing.assert_close(kl.double(), expected.detach(), rtol=2e-6, atol=0.0)


def test_free_bits_stop_the_gradient_where_they_bite() -> None:
    mean, logvar = torch.zeros(2, 32, device=DEVICE), torch.zeros(2, 32, device=DEVICE)
    mean[1] = 3.0
    kl = gaussian.gaussian_kl(mean, logvar, None, None, 0.25, "none", "none")
    assert torch.equal(kl[0], torch.full_like(kl[0], 0.25))
    d_mean, *_ = gaussian.gaussian_kl_backward(torch.ones_like(kl), mean, logvar, None, None, 0.25, "none", "none", 3)
    assert torch.equal(d_mean, mean)


@pytest.mark.parametrize("clamp", ["none", "hard", "soft"])
def test_nan_stays_at_its_place(clamp: str) -> None:
    mean, logvar, grad = draw(2, 70), draw(2, 70), draw(2, 70)
    mean[0, 3] = logvar[1, 7] = float("nan")
    z, kl = gaussian.sample_kl(mean, logvar, None, seed_tensor(), 0.25, "none", clamp)
    gradients = gaussian.sample_kl_backward(grad, grad, mean, logvar, None, seed_tensor(), 0.25, "none", clamp, 3)
    for tensor in (z, kl, gradients[1]):
        assert tensor.isnan().nonzero().tolist() in ([[0, 3], [1, 7]], [[1, 7]])
    assert z.isnan().sum() == kl.isnan().sum() == 2
    per_sample = gaussian.gaussian_kl(mean[:1], logvar[:1], None, None, 0.0, "batch", clamp)
    assert per_sample.isnan().all()


# --- Layouts.

LAYOUTS: dict[str, Callable[[], tuple[Tensor, Tensor | None]]] = {
    "packed": lambda: (draw(3, 10, 7), None),
    "packed, rows of whole blocks": lambda: (draw(2, 2 * 2100), None),
    "long rows, two in a sample": lambda: (draw(2, 2, 520)[..., :516], draw(2, 2, 520)[..., 4:]),
    "packed channels_last, 4 channels": lambda: (draw(2, 8, 5, 6).contiguous(memory_format=torch.channels_last), None),
    "packed channels_last, 5 channels": lambda: (draw(2, 10, 3, 3).contiguous(memory_format=torch.channels_last), None),
    "packed channels_last_3d": lambda: (draw(2, 6, 2, 3, 2).contiguous(memory_format=torch.channels_last_3d), None),
    "halves of a chunk": lambda: draw(3, 10, 7).chunk(2, 1),
    "channels_last and contiguous": lambda: (
        draw(2, 4, 5, 6).contiguous(memory_format=torch.channels_last),
        draw(2, 4, 5, 6),
    ),
    "slice with an offset": lambda: (draw(4, 9, 6)[1:, 2:7], draw(3, 5, 6)),
    "every second sample": lambda: (draw(6, 33)[::2], draw(6, 33)[1::2]),
    "permuted": lambda: (draw(5, 6, 3).permute(2, 1, 0), draw(3, 6, 5)),
    "expanded over the batch": lambda: (draw(3, 40), draw(1, 40).expand(3, 40)),
    "expanded scalar": lambda: (draw(3, 40), draw(1, 1).expand(3, 40)),
    "unaligned": lambda: (draw(121)[1:].view(3, 40), draw(3, 40)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    mean, logvar = LAYOUTS[name]()
    check_sample(mean, logvar, reduction="sum")
    check_kl([mean, logvar, mean.flip(0), None if logvar is None else logvar.flip(0)], reduction="batch")


def test_outputs_have_the_memory_format_of_the_input() -> None:
    for form in (torch.contiguous_format, torch.channels_last):
        packed = draw(2, 8, 5, 6).contiguous(memory_format=form)
        z, kl = gaussian.sample_kl(packed, None, None, seed_tensor(), 0.0, "none", "none")
        gradient, _ = gaussian.sample_kl_backward(z, kl, packed, None, None, seed_tensor(), 0.0, "none", "none", 3)
        for tensor in (z, kl, gradient):
            assert tensor.is_contiguous(memory_format=form)


def test_a_packed_input_is_not_copied() -> None:
    packed = draw(2, 8, 5, 6).contiguous(memory_format=torch.channels_last)
    with recording() as launches:
        gaussian.sample_kl_backward(draw(2, 4, 5, 6), draw(), packed, None, None, seed_tensor(), 0.0, "sum", "none", 3)
    (only,) = launches
    assert {only.arguments[name].data_ptr() - packed.data_ptr() for name in ("mean", "logvar")} == {0, 16}


def test_incoming_gradients_of_any_layout() -> None:
    mean, logvar = draw(2, 4, 5, 6).contiguous(memory_format=torch.channels_last), draw(2, 4, 5, 6)
    oracle = Oracle([mean, logvar, None, None], stream(mean), 0.0, "batch", "none")
    grad_z, grad_kl = draw(1, 1, 1, 6).expand(2, 4, 5, 6), draw(1).expand(2)
    got = gaussian.sample_kl_backward(grad_z, grad_kl, mean, logvar, None, seed_tensor(), 0.0, "batch", "none", 3)
    for gradient, expected in zip(got, oracle.gradients(grad_z, grad_kl), strict=False):
        assert_close(gradient, expected, 8e-6)


# --- Second derivatives.


def check_double_backward(
    mean: Tensor,
    logvar: Tensor | None,
    *,
    seeded: bool = False,
    free_bits: float = 0.0,
    reduction: str = "batchmean",
    clamp: str = "none",
    grads: str = "zk",
) -> None:
    """sample_kl_double_backward against autograd of the oracle's gradients."""
    view = halves(mean, logvar)[0]
    noise = None if seeded else draw(*view.shape, dtype=view.dtype)
    eps = stream(torch.empty_like(view)) if noise is None else noise.double()
    oracle = Oracle([mean, logvar, None, None], eps, free_bits, reduction, clamp)
    wide = torch.float64 if mean.dtype == torch.float64 else torch.float32
    grad_z = draw(*view.shape, dtype=view.dtype) if "z" in grads else None
    grad_kl = draw(*oracle.kl.shape, dtype=wide) if "k" in grads else None
    arriving = [None if t is None else draw(*t.shape, dtype=t.dtype) for t in (mean, logvar)]

    came_in = [None if g is None else g.double().requires_grad_() for g in (grad_z, grad_kl)]
    pairs = [(y, g) for y, g in zip((oracle.z, oracle.kl), came_in, strict=True) if g is not None]
    leaves = [t for t in oracle.inputs if t is not None]
    outputs, given = zip(*pairs, strict=True)
    first = torch.autograd.grad(outputs, leaves, given, create_graph=True, allow_unused=True, materialize_grads=True)
    weighed = sum((d * a.double()).sum() for d, a in zip(first, (a for a in arriving if a is not None), strict=True))
    sources = [*came_in, *oracle.inputs[:2]]
    asked = [t for t in sources if t is not None]
    found = iter(torch.autograd.grad(weighed, asked, allow_unused=True, materialize_grads=True))

    random = (noise, seed_tensor() if seeded else None)
    wanted = sum(1 << bit for bit, t in enumerate(sources) if t is not None)
    options = (free_bits, reduction, clamp, wanted)
    got = gaussian.sample_kl_double_backward(*arriving, grad_z, grad_kl, mean, logvar, *random, *options)
    atol = 2e-5 if seeded or mean.dtype != torch.float64 else 1e-12
    for source, gradient in zip(sources, got, strict=True):
        if source is None:
            assert gradient.shape == (0,)
        else:
            assert_close(gradient, next(found), atol)


@pytest.mark.parametrize("clamp", ["none", "hard", "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivatives(dtype: torch.dtype, clamp: str) -> None:
    spread = 1.0 if clamp == "none" else 9.0
    for grads in ("z", "k", "zk"):
        check_double_backward(
            draw(3, 37, dtype=dtype), draw(3, 37, dtype=dtype, spread=spread).clamp(max=8.0), clamp=clamp, grads=grads
        )
    soft = draw(2, 70, dtype=dtype)
    soft[:, 35:] = torch.linspace(-33, 3, 35, dtype=dtype)
    check_double_backward(soft, None, clamp=clamp)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_second_derivatives_of_each_reduction(reduction: str) -> None:
    check_double_backward(draw(3, 37), draw(3, 37), reduction=reduction, free_bits=0.4)
    check_double_backward(draw(3, 70), None, reduction=reduction, seeded=True)


def test_second_derivatives_in_half_precision_and_channels_last() -> None:
    check_double_backward(draw(2, 8, 3, 5, dtype=torch.bfloat16), None, seeded=True, reduction="batch")
    images = [draw(2, 3, 5, 7).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    check_double_backward(*images, seeded=True, reduction="none")


# --- What is asked for, and what is not.


@pytest.mark.parametrize("grads", ["z", "k", "zk"])
def test_missing_incoming_gradients(grads: str) -> None:
    check_sample(draw(2, 40), draw(2, 40), grads=grads, reduction="none")
    check_sample(draw(2, 40), draw(2, 40), grads=grads, seeded=False)


def test_only_the_gradients_that_are_wanted() -> None:
    inputs, grad = [draw(2, 40) for _ in range(4)], draw()
    everything = gaussian.gaussian_kl_backward(grad, *inputs, 0.0, "sum", "none", 15)
    for wanted in range(16):
        some = gaussian.gaussian_kl_backward(grad, *inputs, 0.0, "sum", "none", wanted)
        for bit, (got, full) in enumerate(zip(some, everything, strict=True)):
            assert torch.equal(got, full) if wanted >> bit & 1 else got.shape == (0,)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_the_sample_gradients_that_are_wanted(wanted: int) -> None:
    arguments = (draw(2, 40), draw(2, 40), draw(2, 40), None, seed_tensor(), "none")
    everything = gaussian.reparameterize_backward(*arguments, 3)
    some = gaussian.reparameterize_backward(*arguments, wanted)
    for bit, (got, full) in enumerate(zip(some, everything, strict=True)):
        assert torch.equal(got, full) if wanted >> bit & 1 else got.shape == (0,)


def test_reparameterize_is_the_sample_of_sample_kl() -> None:
    mean, logvar, grad = draw(2, 8, 3), draw(2, 8, 3), draw(2, 8, 3)
    arguments = (mean, logvar, None, seed_tensor())
    z, _ = gaussian.sample_kl(*arguments, 0.0, "sum", "hard")
    assert torch.equal(gaussian.reparameterize(*arguments, "hard"), z)
    both = gaussian.sample_kl_backward(grad, None, *arguments, 0.0, "sum", "hard", 3)
    for got, expected in zip(gaussian.reparameterize_backward(grad, *arguments, "hard", 3), both, strict=True):
        assert torch.equal(got, expected)


def test_twice_the_same_bits() -> None:
    arguments = (draw(2, 1100), draw(2, 1100), None, seed_tensor(), 0.25, "batchmean", "hard")
    grads = (draw(2, 1100), draw())
    for op, call in ((gaussian.sample_kl, arguments), (gaussian.sample_kl_backward, (*grads, *arguments, 3))):
        for first, second in zip(op(*call), op(*call), strict=True):
            assert torch.equal(first, second)


def test_indices_of_64_bits_give_the_same() -> None:
    packed = draw(2, 10, 7)
    expected, _ = gaussian.sample_kl(packed, None, None, seed_tensor(), 0.0, "none", "none")
    with recording() as launches:
        z, _ = gaussian.sample_kl(packed, None, None, seed_tensor(), 0.0, "none", "none")
    (only,) = launches
    launch(only.kernel, only.programs, only.num_warps, packed, {**only.arguments, "WIDE": True})
    assert torch.equal(z, expected)


def test_large_tensors_ask_for_indices_of_64_bits() -> None:
    with recording() as launches:
        for rows in (2**21 - 8, 2**21, 2**22):
            mean = torch.empty(rows, 1024, device="meta")
            gaussian.gaussian_kl(mean, mean, None, None, 0.0, "batch", "none")
        packed = torch.empty(2**20, 2048, device="meta")  # each half has 2^30 elements, but they are 2^31 apart
        gaussian.gaussian_kl(packed, None, None, None, 0.0, "sum", "none")
    assert [launch.arguments["WIDE"] for launch in launches] == [False, True, True, True]
