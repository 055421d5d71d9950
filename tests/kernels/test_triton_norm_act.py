"""How Triton's norm_act kernels cut their work, which no sample of the battery is large enough to show."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from genmod.kernels import norm_act, planes
from genmod.kernels.launch import recording
from genmod.reference import norm_act as reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def _small_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that a few programs fill, with few lanes: tiny tensors have several blocks, chunks, and steps in each."""
    torch.manual_seed(0)
    monkeypatch.setattr(planes, "_PROGRAMS", 30)
    monkeypatch.setattr(planes, "_LANES", 4)
    monkeypatch.setattr(planes, "_BYTES", 64)


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is full of NaN: what a kernel does not write shows."""

    def poisoned(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            fresh = function(*args, **kwargs)
            return fresh.fill_(math.nan) if fresh.device.type != "meta" else fresh

        return call

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))


def draw(*shape: int, form: torch.memory_format = torch.contiguous_format, shift: float = 0.0) -> Tensor:
    return (torch.randn(shape) + shift).to(DEVICE).contiguous(memory_format=form)


def check(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], atol: float = 2e-6) -> None:
    assert len(got) == len(expected)
    for number, (a, b) in enumerate(zip(got, expected)):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(
            a, b, rtol=0, atol=atol * scale, equal_nan=True, msg=lambda m, n=number: f"result {n}: {m}"
        )


def how_cut(launches: list[Any]) -> list[tuple[int, int]]:
    """Chunks and steps of every launch that reduces positions."""
    return [(a["chunks"], a["steps"]) for a in (launch.arguments for launch in launches) if "steps" in a]


@pytest.mark.parametrize("form", FORMATS, ids=["contiguous", "channels_last"])
def test_group_norm_in_many_pieces(form: torch.memory_format) -> None:
    x, residual = draw(2, 12, 9, 8, form=form), draw(2, 12, 9, 8, form=form)
    parameters = (draw(12), draw(12), draw(2, 12), draw(2, 12))
    options = (2, 1e-5, "silu", 0.0)
    expected = reference.group_norm_act(x, residual, *parameters, *options)
    check(norm_act.group_norm_act(x, residual, *parameters, *options), expected)
    _, total, mean, rstd = expected
    grad, grad_sum = draw(2, 12, 9, 8, form=form), draw(2, 12, 9, 8)
    call = (grad, grad_sum, total, *parameters, mean, rstd, *options, 31)
    check(norm_act.group_norm_act_backward(*call), reference.group_norm_act_backward(*call), 1e-5)
    with recording() as launches:
        norm_act.group_norm_act_backward(*call)
    ((chunks, steps),) = how_cut(launches)
    assert chunks > 1
    assert steps > 1


@pytest.mark.parametrize("form", FORMATS, ids=["contiguous", "channels_last"])
def test_batch_norm_in_many_pieces(form: torch.memory_format) -> None:
    x, weight, bias = draw(3, 12, 9, 8, form=form), draw(12), draw(12)
    options = (True, 1e-5, "gelu", 0.0)
    expected = reference.batch_norm_act(x, None, None, None, weight, bias, *options)
    check(norm_act.batch_norm_act(x, None, None, None, weight, bias, *options), expected)
    call = (draw(3, 12, 9, 8), None, x, weight, bias, *expected[2:], *options, 7)
    check(norm_act.batch_norm_act_backward(*call), reference.batch_norm_act_backward(*call), 1e-5)


@pytest.mark.parametrize("over", ["group", "batch", "nothing"])
@pytest.mark.parametrize("form", FORMATS, ids=["contiguous", "channels_last"])
def test_second_derivatives_in_many_pieces(form: torch.memory_format, over: str) -> None:
    x, grad, to_x = (draw(2, 12, 9, 8, form=form) for _ in range(3))
    modulation = (draw(2, 12), draw(2, 12)) if over == "group" else (None, None)
    arriving, parameters = (draw(12), draw(12), *modulation), (draw(12), draw(12), *modulation)
    if over == "group":
        _, _, mean, rstd = reference.group_norm_act(x, None, *parameters, 2, 1e-5, "silu", 0.0)
    else:
        mean, rstd = draw(12), draw(12).abs() + 0.5
    if over == "batch":
        mean, rstd = x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + 1e-5).rsqrt()
    given = (grad, x, *parameters, mean, rstd, over, 2 if over == "group" else 1, 1e-5, "silu", 0.0)
    for first in (to_x, None):
        call = (first, *arriving, *given, 63)
        check(norm_act.norm_act_double_backward(*call), reference.norm_act_double_backward(*call), 2e-5)
    everything = norm_act.norm_act_double_backward(to_x, *arriving, *given, 63)
    for wanted in (0, 1, 2, 12, 48):
        some = norm_act.norm_act_double_backward(to_x, *arriving, *given, wanted)
        for bit, (got, full) in enumerate(zip(some, everything, strict=True)):
            assert torch.equal(got, full) if wanted >> bit & 1 and full.numel() else got.shape == (0,)


@pytest.mark.parametrize("form", FORMATS, ids=["contiguous", "channels_last"])
def test_bias_act_in_many_pieces(form: torch.memory_format) -> None:
    x, bias, grad = draw(3, 12, 9, 8, form=form), draw(12), draw(3, 12, 9, 8)
    options = ("tanh", 0.0, 1.5, 1.2)
    check((norm_act.bias_act(x, bias, *options),), (reference.bias_act(x, bias, *options),))
    call = (grad, x, bias, *options, 3)
    check(norm_act.bias_act_backward(*call), reference.bias_act_backward(*call), 1e-5)


@pytest.mark.parametrize("form", FORMATS, ids=["contiguous", "channels_last"])
def test_a_mean_far_from_zero_costs_nothing(form: torch.memory_format) -> None:
    """The mean is kept to twice the precision, so what remains is that of the differences, which are exact here."""
    x = draw(2, 4, 16, 16, form=form, shift=4096.0)
    y, _, mean, rstd = norm_act.group_norm_act(x, *(None,) * 5, 2, 1e-5, "identity", 0.0)
    exact = reference.group_norm_act(x.double(), *(None,) * 5, 2, 1e-5, "identity", 0.0)
    assert (y - exact[0]).abs().max() < 2e-6
    assert (rstd / exact[3] - 1).abs().max() < 1e-6
    assert torch.equal(mean, exact[2].float())


def test_one_channel_unlike_the_others() -> None:
    """Chunks of one group with means far apart are combined without losing their variance."""
    x = draw(1, 4, 16, 16)
    x[:, 1] += 300.0
    x[:, 3] -= 50.0
    expected = reference.group_norm_act(x.double(), *(None,) * 5, 1, 1e-5, "identity", 0.0)
    got = norm_act.group_norm_act(x, *(None,) * 5, 1, 1e-5, "identity", 0.0)
    check((got[0].double(), got[3].double()), (expected[0], expected[3]), 1e-6)


def test_only_what_is_wanted_is_launched() -> None:
    x, parameter, statistic = (torch.empty(shape, device="meta") for shape in ((2, 8, 4, 4), (8,), (2, 4)))
    counts = []
    for wanted in (31, 1, 2):
        with recording() as launches:
            norm_act.group_norm_act_backward(
                x, None, x, parameter, parameter, None, None, statistic, statistic, 4, 1e-5, "silu", 0.0, wanted
            )
        counts.append(len(launches))
    assert counts == [4, 3, 3]
    with recording() as launches:
        norm_act.batch_norm_act_backward(
            x, None, x, parameter, parameter, parameter, parameter, False, 1e-5, "relu", 0.0, 1
        )
    assert len(launches) == 1


@pytest.mark.parametrize(("samples", "wide"), [(15, False), (16, True)], ids=["below 2^31", "2^31"])
def test_offsets_beyond_32_bits(samples: int, wide: bool) -> None:
    x = torch.empty(samples, 128, 1024, 1024, dtype=torch.half, device="meta")
    with recording() as launches:
        norm_act.group_norm_act(x, *(None,) * 5, 32, 1e-5, "silu", 0.0)
        norm_act.bias_act_backward(x, x, None, "silu", 0.0, 1.0, math.inf, 1)
    assert [launch.arguments["WIDE"] for launch in launches] == [wide] * 4
