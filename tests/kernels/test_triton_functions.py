"""The device functions that Triton kernels share: elementary functions, noise, and where elements are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from genmod.kernels.elementary import exp_parts, log_positive, sincos_turn
from genmod.kernels.philox import normal_parts
from genmod.kernels.rows import elements
from genmod.reference.philox import _normal_pair, philox4x32

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INF, NAN = float("inf"), float("nan")


@triton.jit
def _exp_parts_kernel(x, exp, expm1, expm1_minus, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b, c = exp_parts(tl.load(x + i))
    tl.store(exp + i, a)
    tl.store(expm1 + i, b)
    tl.store(expm1_minus + i, c)


@triton.jit
def _log_kernel(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, log_positive(tl.load(x + i)))


@triton.jit
def _sincos_kernel(bits, sin, cos, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    s, c = sincos_turn(tl.load(bits + i).to(tl.uint32))
    tl.store(sin + i, s)
    tl.store(cos + i, c)


@triton.jit
def _philox_kernel(seed, counters, words, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    c = counters + 4 * i
    c0, c1, c2, c3 = tl.load(c), tl.load(c + 1), tl.load(c + 2), tl.load(c + 3)
    w0, w1, w2, w3 = tl.philox(tl.load(seed), c0, c1, c2, c3)
    tl.store(words + 4 * i, w0.to(tl.int64))
    tl.store(words + 4 * i + 1, w1.to(tl.int64))
    tl.store(words + 4 * i + 2, w2.to(tl.int64))
    tl.store(words + 4 * i + 3, w3.to(tl.int64))


@triton.jit
def _normals_kernel(seed, block, out, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK // 4)
    start = tl.load(block) * BLOCK
    parts = normal_parts(seed, start, tl.load(out + lane), BLOCK)
    for part in tl.static_range(4):
        index, _, _ = elements(0, start, start + BLOCK, start, 1, part, 4, False, 16, BLOCK)
        tl.store(out + (index - start), parts[part])


@triton.jit
def _elements_kernel(
    place, index, inside, row, cols, PARTS: tl.constexpr, SHORT: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr
):
    for part in tl.static_range(PARTS):
        segment, begin, end, start = tl.load(place), tl.load(place + 1), tl.load(place + 2), tl.load(place + 3)
        i, mask, r = elements(segment, begin, end, start, cols, part, PARTS, SHORT, UNIT, BLOCK)
        slot = i - start
        tl.store(index + slot, i)
        tl.store(inside + slot, mask.to(tl.int32))
        tl.store(row + slot, slot * 0 + r)


def ulps(got: Tensor, expected: np.ndarray) -> float:
    """The largest error in units in the last place of `got`'s dtype."""
    values = got.cpu().numpy()
    rounded = expected.astype(values.dtype)
    spacing = np.maximum(np.abs(np.spacing(rounded)), np.finfo(values.dtype).tiny).astype(expected.dtype)
    finite = np.isfinite(rounded)
    assert np.array_equal(values[~finite], rounded[~finite], equal_nan=True)
    error = np.abs(values[finite].astype(expected.dtype) - expected[finite])
    return float(np.max(error / spacing[finite], initial=0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exp_parts(dtype: torch.dtype) -> None:
    size = 4096
    reach = 80 if dtype == torch.float32 else 700
    x = torch.cat(
        (
            torch.linspace(-reach, reach, size // 2, dtype=torch.float64),
            torch.linspace(-1, 1, size // 4, dtype=torch.float64),
            torch.logspace(-12, 0, size // 4, dtype=torch.float64) * torch.tensor([1.0, -1.0]).repeat(size // 8),
        )
    ).to(DEVICE, dtype)
    outputs = [torch.empty_like(x) for _ in range(3)]
    _exp_parts_kernel[(1,)](x, *outputs, BLOCK=size)
    exact = x.cpu().numpy().astype(np.longdouble)
    series = sum(exact**n / np.prod(np.arange(1, n + 1, dtype=np.longdouble)) for n in range(18, 1, -1))
    minus = np.where(np.abs(exact) < 0.5, series, np.expm1(exact) - exact)
    # The last two subtract, from |x| = ln(2) / 2 on, numbers that are 2 and 12 times larger than the result there.
    for output, expected, limit in zip(outputs, (np.exp(exact), np.expm1(exact), minus), (2, 4, 16), strict=True):
        assert ulps(output, expected) < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exp_parts_at_the_ends(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, -INF, NAN, 1e30, -1e30, 60.0, -1e4], device=DEVICE, dtype=dtype)
    exp, expm1, minus = outputs = [torch.empty_like(x) for _ in range(3)]
    _exp_parts_kernel[(1,)](x, *outputs, BLOCK=8)
    assert exp[[0, 1, 2, 4, 5, 7]].tolist() == [1.0, 1.0, 0.0, INF, 0.0, 0.0]
    assert expm1[[0, 1, 2, 4, 5, 7]].tolist() == [0.0, 0.0, -1.0, INF, -1.0, -1.0]
    assert minus[[0, 1, 2, 4]].tolist() == [0.0, 0.0, INF, INF]
    assert all(output[3].isnan() for output in outputs)


def test_log_positive() -> None:
    around_one = (1 + torch.linspace(-0.5, 1, 1024), 1 - 2.0 ** -torch.arange(1.0, 1025), torch.full((1024,), 2.0**-33))
    x = torch.cat((torch.logspace(-37, 37, 1024), *around_one)).to(DEVICE)
    y = torch.empty_like(x)
    _log_kernel[(1,)](x, y, BLOCK=4096)
    assert ulps(y, np.log(x.cpu().numpy().astype(np.float64))) < 2.0


def test_sincos_turn() -> None:
    corners = torch.tensor([k * 2**29 + d for k in range(8) for d in (-2, -1, 0, 1)]) % 2**32
    bits = torch.cat((corners, torch.randint(0, 2**32, (992,), generator=torch.Generator().manual_seed(0)))).to(DEVICE)
    sin, cos = torch.empty(1024, device=DEVICE), torch.empty(1024, device=DEVICE)
    _sincos_kernel[(1,)](bits, sin, cos, BLOCK=1024)
    angle = bits.double() * (2 * torch.pi / 2**32)
    for got, expected in ((sin, angle.sin()), (cos, angle.cos())):
        assert (got.double() - expected).abs().max() < 1e-7


# Random123's published vectors: counter, key, result.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), VECTORS)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], result: tuple[int, ...]) -> None:
    seed = np.array([key[0] | key[1] << 32], np.uint64).view(np.int64)
    counters = np.array(counter, np.uint32).view(np.int32)
    words = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    _philox_kernel[(1,)](torch.from_numpy(seed).to(DEVICE), torch.from_numpy(counters).to(DEVICE), words, BLOCK=1)
    assert tuple(words.tolist()) == result


@pytest.mark.parametrize("block", [0, 3, 2**24, 2**54 + 1], ids=["0", "3", "2^24", "2^54+1"])
def test_normals_of_far_blocks(block: int) -> None:
    """Counters beyond 32 bits too: element 2^62 of a stream is as good as element 0."""
    size, seed = 256, 0x7EDCBA9876543210
    out = torch.zeros(size, device=DEVICE)
    blocks = torch.tensor([block], device=DEVICE)
    _normals_kernel[(1,)](torch.tensor([seed], device=DEVICE), blocks, out, BLOCK=size)
    counter = block * size // 4 + torch.arange(size // 4)
    key = torch.tensor(seed & 0xFFFFFFFF), torch.tensor(seed >> 32)
    w = philox4x32((counter & 0xFFFFFFFF, counter >> 32, counter * 0, counter * 0), key)
    parts = [n.view(-1, 16) for n in (*_normal_pair(w[0], w[1]), *_normal_pair(w[2], w[3]))]
    torch.testing.assert_close(out.cpu(), torch.stack(parts, 1).flatten(), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("unit", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("short", [False, True], ids=["long rows", "short rows"])
def test_elements(short: bool, parts: int, unit: int) -> None:
    """Beyond 2^32, each element once, within the bounds, with its row."""
    block, cols, segment = 256, 3 * unit, 5
    start = 2**33 + 3 * block
    begin, end = start + 2 * unit, start + block - 3 * unit
    place = torch.tensor([segment, begin, end, start], device=DEVICE)
    index, row = (torch.full((block,), -1, dtype=torch.int64, device=DEVICE) for _ in range(2))
    inside = torch.full((block,), -1, dtype=torch.int32, device=DEVICE)
    _elements_kernel[(1,)](place, index, inside, row, cols, PARTS=parts, SHORT=short, UNIT=unit, BLOCK=block)
    expected = start + torch.arange(block)
    assert torch.equal(index.cpu(), expected)
    assert torch.equal(inside.cpu() == 1, (expected >= begin) & (expected < end))
    assert torch.equal(row.cpu(), expected // cols * unit if short else torch.full_like(expected, segment * unit))
