"""The CUDA kernels' logic without a GPU: csrc/cuda/gaussian.cu built by g++ through cuda_on_cpu.h, against numpy.

The oracle is in float64, written from the op's formulas and from the Philox paper, not from any backend of ours. Every
buffer a kernel sees is cut out of memory filled with 0xFF, which is NaN in all four types, before, between and after
the rows: a kernel that reads what it should not gives NaN, and every byte that it should not have written must still
be 0xFF.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from .cuda_on_cpu import HERE, build

ENTRY = """
#include "cuda/gaussian.cu"
using namespace genmod::cuda;
extern "C" {
int forward_kernel(const GaussianForward* p) { return gaussian_forward(*p, nullptr); }
int backward_kernel(const GaussianBackward* p) { return gaussian_backward(*p, nullptr); }
int64_t workspace(int64_t numel, int64_t samples) { return gaussian_workspace(numel, samples); }
void philox_words(uint32_t* counter, uint64_t key) {
  const Words w = philox({{counter[0], counter[1], counter[2], counter[3]}}, key);
  memcpy(counter, w.v, sizeof(w.v));
}
int64_t quotient(int64_t n, int64_t d) { return Divider(d).quotient(n); }
void run_reversed(int on) { cuda_on_cpu::reversed = on; }
}
"""

NONE, HARD, SOFT = 0, 1, 2


# ---- the library under test


class Rows(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64))


_COMMON = [
    ("dtype", ctypes.c_int),
    ("clamp", ctypes.c_int),
    ("free_bits", ctypes.c_double),
    ("numel", ctypes.c_int64),
    ("cols", ctypes.c_int64),
    ("mean", Rows),
    ("logvar", Rows),
    ("other_mean", Rows),
    ("other_logvar", Rows),
    ("noise", ctypes.c_void_p),
    ("seed", ctypes.c_void_p),
]


class Forward(ctypes.Structure):
    _fields_ = (
        *_COMMON,
        ("z", ctypes.c_void_p),
        ("kl", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("sample", ctypes.c_int64),
        ("samples", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("workspace", ctypes.c_void_p),
    )


class Backward(ctypes.Structure):
    _fields_ = (
        *_COMMON,
        ("grad_z", ctypes.c_void_p),
        ("grad_kl", ctypes.c_void_p),
        ("grad_kl_per_element", ctypes.c_bool),
        ("sample", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("d_mean", Rows),
        ("d_logvar", Rows),
        ("d_other_mean", Rows),
        ("d_other_logvar", Rows),
        ("out_cols", ctypes.c_int64),
        ("other_out_cols", ctypes.c_int64),
    )


def load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.workspace.argtypes = library.quotient.argtypes = [ctypes.c_int64, ctypes.c_int64]
    library.workspace.restype = library.quotient.restype = ctypes.c_int64
    library.philox_words.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    return library


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cuda_on_cpu"), ENTRY)


@pytest.fixture(scope="module")
def library(built: Path) -> ctypes.CDLL:
    return load(built)


# ---- memory


class Dtype(NamedTuple):
    name: str
    code: int
    storage: np.dtype  # bfloat16 is kept as its bits, which numpy has no type for
    rtol: float  # of a result rounded to this type

    @property
    def arithmetic(self) -> Dtype:
        return F64 if self.name == "f64" else F32

    def encode(self, x: np.ndarray) -> np.ndarray:
        if self.name != "bf16":
            with np.errstate(over="ignore"):
                return x.astype(self.storage)
        bits = x.astype(np.float32).view(np.uint32)
        rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)

    def decode(self, stored: np.ndarray) -> np.ndarray:
        if self.name != "bf16":
            return stored.astype(np.float64)
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)

    def round(self, x: np.ndarray) -> np.ndarray:
        return self.decode(self.encode(x))


F32 = Dtype("f32", 0, np.dtype(np.float32), 4e-6)
F64 = Dtype("f64", 1, np.dtype(np.float64), 1e-13)
BF16 = Dtype("bf16", 2, np.dtype(np.uint16), 2.0**-7)
F16 = Dtype("f16", 3, np.dtype(np.float16), 2.0**-10)
DTYPES = (F32, F64, BF16, F16)


class Layout(NamedTuple):
    """rows x cols elements, rows `stride` apart, the first `offset` elements past a 64-byte boundary."""

    rows: int
    cols: int
    stride: int = 0
    offset: int = 0

    @property
    def numel(self) -> int:
        return self.rows * self.cols

    def dense(self, offset: int = 0) -> Layout:
        return Layout(1, self.numel, 0, offset)


class Memory:
    """Room for a tensor in a sea of 0xFF."""

    GUARD = 64

    def __init__(self, dtype: Dtype, layout: Layout, values: np.ndarray | None, protected: bool) -> None:
        self.dtype, self.layout = dtype, layout
        size = dtype.storage.itemsize
        positions = np.arange(layout.rows)[:, None] * layout.stride + np.arange(layout.cols)
        self.positions = positions.reshape(-1) + layout.offset
        span = (int(self.positions[-1]) + 1 if layout.numel else layout.offset) * size
        self.raw = self._before_a_forbidden_page(span) if protected else self._aligned(span)
        self.typed = self.raw[self.GUARD :][: span // size * size].view(dtype.storage)
        self.address = self.raw.ctypes.data + self.GUARD + layout.offset * size
        if values is not None:
            self.typed[self.positions] = dtype.encode(values)
        self.before = self.raw.copy()

    def _aligned(self, span: int) -> np.ndarray:
        raw = np.full(span + 2 * self.GUARD + 63, 0xFF, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + span + 2 * self.GUARD]

    def _before_a_forbidden_page(self, span: int) -> np.ndarray:
        """Memory that ends where a page begins that no one may touch."""
        page = mmap.PAGESIZE
        usable = -(-(span + self.GUARD) // page) * page
        self.pages = mmap.mmap(-1, usable + page)
        whole = np.frombuffer(self.pages, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(whole.ctypes.data + usable), page, 0) == 0
        raw = whole[usable - span - self.GUARD : usable]
        raw[:] = 0xFF
        return raw

    def rows(self) -> Rows:
        return Rows(self.address, self.layout.stride)

    def values(self) -> np.ndarray:
        return self.dtype.decode(self.typed[self.positions])

    def check_guards(self, written: bool) -> None:
        """Nothing changed but, if it was to be written, the tensor itself."""
        expected = self.before.copy()
        if written:
            typed = expected[self.GUARD :][: self.typed.nbytes].view(self.dtype.storage)
            typed[self.positions] = self.typed[self.positions]
        assert np.array_equal(self.raw, expected), "a kernel wrote outside of its output"


# ---- the oracle


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 of Salmon et al., SC 2011: counters [n, 4] to words [n, 4]."""
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (b >> shift) ^ c1 ^ np.uint64(k0), b & low, (a >> shift) ^ c3 ^ np.uint64(k1), a & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], 1).astype(np.uint32)


def normals(seed: int, numel: int) -> np.ndarray:
    """The noise that `seed` stands for."""
    i = np.arange(numel, dtype=np.int64)
    block, word, lane = i // 64, i % 64 // 16, i % 16
    c = 16 * block + lane
    counter = np.stack([c & 0xFFFFFFFF, c >> 32, np.zeros_like(c), np.zeros_like(c)], 1)
    key = seed & 0xFFFFFFFFFFFFFFFF
    words = philox4x32(counter, (key & 0xFFFFFFFF, key >> 32))
    first = word // 2 * 2
    x, y = words[i, first], words[i, first + 1]
    u = (x.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)).astype(np.float64)
    r, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * y.astype(np.float64) / 2**32
    return r * np.where(word % 2 == 0, np.cos(angle), np.sin(angle))


def bound(x: np.ndarray, clamp: int) -> tuple[np.ndarray, np.ndarray]:
    """logvar, bounded, and the derivative of the bound."""
    if clamp == NONE:
        return x, np.ones_like(x)
    if clamp == HARD:
        return np.clip(x, -30, 20), np.where((x < -30) | (x > 20), 0.0, 1.0)
    upper = 20 - np.logaddexp(0, 20 - x)
    slope = np.exp(-np.logaddexp(0, x - 20)) * np.exp(-np.logaddexp(0, -(upper + 30)))
    return -30 + np.logaddexp(0, upper + 30), slope


def divergence(m: np.ndarray, l: np.ndarray, om: Any, ol: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # noqa: E741
    """KL per element before free bits, and expm1 of the variances' log-ratio, and the squared distance."""
    d = l - ol
    square = (m - om) ** 2 * np.exp(-ol)
    series = np.zeros_like(d)  # of expm1(d) - d, which cancels near 0
    for k in range(12, 1, -1):
        series = (series * d + 1 / math.factorial(k)) * (d * d if k == 2 else 1)
    return 0.5 * (np.where(np.abs(d) < 0.1, series, np.expm1(d) - d) + square), np.expm1(d), square


# ---- running a case


class Case(NamedTuple):
    dtype: Dtype
    layout: Layout
    clamp: int = NONE
    free_bits: float = 0.0
    seed: int | None = None  # None: noise is given
    pair: bool = False
    batch: int = 1
    spread: float = 1.0  # of logvar
    out: Layout | None = None  # of the gradients
    protected: bool = False


SEEDS = (0, 1234567890123456789, -1)
INPUTS = ("mean", "logvar", "other_mean", "other_logvar")


class Setup:
    """A case's inputs in memory, their values in float64, and the oracle's answers."""

    def __init__(self, case: Case) -> None:
        self.case = case
        rng = np.random.default_rng(case.layout.numel + case.dtype.code)
        self.memory = {}
        for name in INPUTS if case.pair else INPUTS[:2]:
            values = rng.standard_normal(case.layout.numel) * (case.spread if "logvar" in name else 1.0)
            self.memory[name] = self.room(case.dtype, case.layout, values)
        self.x = {name: memory.values() for name, memory in self.memory.items()}
        self.noise_memory = self.room(case.dtype, case.layout.dense(), rng.standard_normal(case.layout.numel))
        self.noise = self.noise_memory.values() if case.seed is None else normals(case.seed, case.layout.numel)
        self.key = np.array([case.seed or 0], np.int64)

        self.m, self.om = self.x["mean"], self.x.get("other_mean", 0.0)
        self.l, self.slope = bound(self.x["logvar"], case.clamp)
        self.ol, self.other_slope = bound(self.x["other_logvar"], case.clamp) if case.pair else (np.zeros(1), None)
        self.raw_kl, self.expm1, self.square = divergence(self.m, self.l, self.om, self.ol)
        self.kl = np.maximum(self.raw_kl, case.free_bits) if case.free_bits else self.raw_kl
        self.z = self.m + np.exp(self.l / 2) * self.noise

    def room(self, dtype: Dtype, layout: Layout, values: np.ndarray | None = None) -> Memory:
        return Memory(dtype, layout, values, self.case.protected)

    def fill(self, p: Any) -> None:
        case = self.case
        p.dtype, p.clamp, p.free_bits = case.dtype.code, case.clamp, case.free_bits
        p.numel, p.cols = case.layout.numel, case.layout.cols
        for name, memory in self.memory.items():
            setattr(p, name, memory.rows())

    def set_noise(self, p: Any) -> None:
        if self.case.seed is None:
            p.noise = self.noise_memory.address
        else:
            p.seed = self.key.ctypes.data

    def check_inputs(self) -> None:
        for memory in (*self.memory.values(), self.noise_memory):
            memory.check_guards(written=False)


def check(got: np.ndarray, want: np.ndarray, rtol: float, what: str, atol: float = 0.0) -> None:
    close = np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
    worst = np.argmin(close) if close.size else 0
    assert close.all(), f"{what}: element {worst} of {close.size} is {got.flat[worst]}, not {want.flat[worst]}"


def run_forward(library: ctypes.CDLL, case: Case, *, z: bool, reduction: str | None) -> dict[str, np.ndarray]:
    """Runs the kernels and checks what they give; returns it."""
    s = Setup(case)
    p = Forward()
    s.fill(p)
    a, numel = case.dtype.arithmetic, case.layout.numel
    outputs: dict[str, Memory] = {}
    if z:
        s.set_noise(p)
        outputs["z"] = s.room(case.dtype, case.layout.dense())
        p.z = outputs["z"].address
    scale = 1.0
    if reduction == "none":
        outputs["kl"] = s.room(a, case.layout.dense())
        p.kl = outputs["kl"].address
    elif reduction is not None:
        p.samples = case.batch if reduction == "batch" else 1
        p.sample = numel // max(p.samples, 1)
        scale = p.scale = 0.75 if reduction == "batch" else 1.0 / max(case.batch, 1)
        outputs["sums"] = s.room(a, Layout(1, p.samples))
        p.sums = outputs["sums"].address
        outputs["workspace"] = s.room(a, Layout(1, library.workspace(numel, p.samples)))
        p.workspace = outputs["workspace"].address
    assert library.forward_kernel(ctypes.byref(p)) == 0
    s.check_inputs()
    for memory in outputs.values():
        memory.check_guards(written=True)
    if z:
        atol = 1e-6 if a is F32 else 1e-13
        if case.seed is not None:  # drawn in float32 always
            atol += 2e-6 * np.exp(s.l / 2).max(initial=1)
        check(outputs["z"].values(), case.dtype.round(s.z), case.dtype.rtol, "z", atol)
    rtol = 1e-5 if a is F32 else 1e-12
    if reduction == "none":
        check(outputs["kl"].values(), s.kl, rtol, "kl", 1e-30)
    elif reduction is not None:
        check(outputs["sums"].values(), s.kl.reshape(p.samples, p.sample).sum(1) * scale, rtol, reduction)
    return {name: memory.values() for name, memory in outputs.items() if name != "workspace"}


def run_backward(
    library: ctypes.CDLL, case: Case, *, z: bool, reduction: str | None, wanted: int = 15
) -> dict[str, np.ndarray]:
    """Runs the kernels and checks what they give; returns it."""
    s = Setup(case)
    p = Backward()
    s.fill(p)
    a, numel = case.dtype.arithmetic, case.layout.numel
    rng = np.random.default_rng(7)
    gz, g = np.zeros(numel), np.zeros(numel)
    p.scale, p.sample = 1.0, max(numel, 1)
    incoming = []
    if z:
        s.set_noise(p)
        gz = case.dtype.round(rng.standard_normal(numel))
        incoming.append(s.room(case.dtype, case.layout.dense(), gz))
        p.grad_z = incoming[-1].address
    if reduction is not None:
        count = {"none": numel, "batch": case.batch}.get(reduction, 1)
        values = a.round(rng.standard_normal(count))
        incoming.append(s.room(a, Layout(1, count), values))
        p.grad_kl, p.grad_kl_per_element = incoming[-1].address, reduction == "none"
        if reduction == "batch":
            p.sample, p.scale = numel // case.batch, 0.75
        elif reduction == "batchmean":
            p.scale = 1.0 / case.batch
        g = np.repeat(values, numel // max(count, 1)) * p.scale
    if case.free_bits:
        g = np.where(s.raw_kl <= case.free_bits, 0.0, g)

    layout = case.out or case.layout.dense()
    precision = np.exp(-s.ol) if case.pair else 1.0
    sampled = gz * np.exp(s.l / 2) * s.noise if z else 0.0
    want = {
        "d_mean": gz + g * (s.m - s.om) * precision,
        "d_logvar": s.slope * 0.5 * (sampled + g * s.expm1),
        "d_other_mean": -g * (s.m - s.om) * precision,
        "d_other_logvar": -0.5 * (s.other_slope if case.pair else 0.0) * g * (s.expm1 + s.square),
    }
    outputs = {}
    for bit, name in enumerate(want):
        if wanted >> bit & 1 and (bit < 2 or case.pair):
            outputs[name] = s.room(case.dtype, layout)
            setattr(p, name, outputs[name].rows())
    p.out_cols, p.other_out_cols = layout.cols, layout.cols if case.pair else 0
    assert library.backward_kernel(ctypes.byref(p)) == 0
    s.check_inputs()
    for memory in incoming:
        memory.check_guards(written=False)
    for name, memory in outputs.items():
        memory.check_guards(written=True)
        size = np.abs(g) * (1 + np.abs(s.expm1) + s.square) + np.abs(gz) * (1 + np.exp(s.l / 2) * (1 + np.abs(s.noise)))
        atol = (4e-6 if a is F32 else 1e-6 if z and case.seed is not None else 1e-13) * size.max(initial=1)
        check(memory.values(), case.dtype.round(want[name]), case.dtype.rtol, name, atol)
    return {name: memory.values() for name, memory in outputs.items()}


# ---- the tests

DENSE = [Layout(1, n) for n in (0, 1, 63, 64, 65, 1000, 4097)]
ROWS = [
    Layout(3, 65, 130),  # halves of a packed tensor, odd
    Layout(5, 64, 128),  # even
    Layout(7, 20, 40),  # rows that Philox blocks cross
    Layout(33, 4, 8),  # channels_last
    Layout(33, 128, 200, offset=8),
    Layout(2, 1000, 1001),  # rows that lose their alignment
    Layout(1, 300, 0, offset=1),  # a base without alignment
    Layout(40, 96, 0),  # one row, expanded
]
LAYOUTS = DENSE + ROWS
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda a: f"{a.rows}x{a.cols}+{a.stride}")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)


def test_philox_known_answers(library: ctypes.CDLL) -> None:
    """The vectors published with Random123, from the oracle and from the kernels' own function."""
    vectors = [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]
    for counter, key, answer in vectors:
        c, k, want = ([int(w, 16) for w in text.split()] for text in (counter, key, answer))
        assert philox4x32(np.array([c]), (k[0], k[1]))[0].tolist() == want
        words = np.array(c, np.uint32)
        library.philox_words(words.ctypes.data, k[0] | k[1] << 32)
        assert words.tolist() == want


def test_division(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    divisors = [1, 2, 3, 5, 7, 64, 1000, 2**31 - 1, 2**31, 2**31 + 1, 2**62 - 1, 2**62]
    divisors += (2 ** rng.uniform(0, 62, 300)).astype(np.int64).tolist()
    for d in divisors:
        near = [q * d + r for q in (1, 2, (2**63 - 2) // d) for r in (-1, 0, 1)]
        for n in [0, 2**63 - 1, *near, *(2 ** rng.uniform(0, 62.9, 5)).astype(np.int64).tolist()]:
            if 0 <= n < 2**63:
                assert library.quotient(n, d) == n // d, (n, d)


CLAMPS = (NONE, HARD, SOFT)
REDUCTIONS = (None, "none", "batch", "batchmean")
FREE_BITS = (0.0, 0.25)


@dtypes
@layouts
def test_forward(library: ctypes.CDLL, dtype: Dtype, layout: Layout) -> None:
    """All that a forward can be asked for; the clamps, which nothing else depends on, take turns."""
    combinations = itertools.product(REDUCTIONS, FREE_BITS, (None, SEEDS[1]))
    for (reduction, free, seed), clamp in zip(combinations, itertools.cycle(CLAMPS)):
        case = Case(dtype, layout, clamp, free, seed, batch=layout.rows, spread=1.0 if clamp == NONE else 2.0)
        run_forward(library, case, z=True, reduction=reduction)
        if reduction is not None and seed is None:
            run_forward(library, case, z=False, reduction=reduction)
            run_forward(library, case._replace(pair=True), z=False, reduction=reduction)


@dtypes
@layouts
def test_backward(library: ctypes.CDLL, dtype: Dtype, layout: Layout) -> None:
    packed = Layout(layout.rows, layout.cols, 2 * layout.cols, layout.offset)
    clamps, outs = itertools.cycle(CLAMPS), itertools.cycle((packed, None, None, packed))
    for (reduction, free), clamp, out in zip(itertools.product(REDUCTIONS, FREE_BITS), clamps, outs):
        case = Case(dtype, layout, clamp, free, batch=layout.rows, spread=1.0 if clamp == NONE else 2.0, out=out)
        run_backward(library, case, z=True, reduction=reduction)
        run_backward(library, case._replace(seed=SEEDS[1]), z=True, reduction=reduction)
        if reduction is not None:
            run_backward(library, case, z=False, reduction=reduction)
            run_backward(library, case._replace(pair=True), z=False, reduction=reduction)


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_is_the_reference_stream(library: ctypes.CDLL, seed: int) -> None:
    """Mean 0, variance 1: z is the noise itself, in any layout."""
    for layout in (Layout(1, 5000), Layout(7, 20, 40)):
        case = Case(F32, layout, seed=seed)
        s = Setup(case)
        for memory in s.memory.values():
            memory.typed[memory.positions] = 0
        z = s.room(F32, layout.dense())
        p = Forward(z=z.address)
        s.fill(p)
        s.set_noise(p)
        assert library.forward_kernel(ctypes.byref(p)) == 0
        check(z.values(), normals(seed, layout.numel), 0, "noise", 2e-6)


@pytest.mark.parametrize("wanted", range(16))
def test_only_wanted_gradients_are_written(library: ctypes.CDLL, wanted: int) -> None:
    for layout in (Layout(5, 64, 128), Layout(3, 65, 130)):
        case = Case(F32, layout, SOFT, batch=layout.rows)
        run_backward(library, case._replace(pair=True), z=False, reduction="batch", wanted=wanted)
        run_backward(library, case._replace(seed=5), z=True, reduction="batch", wanted=wanted)


SAMPLES = [(0, 5), (1, 1), (4097, 1), (900, 5), (64, 65), (7, 2048), (3, 5000), (2, 150_000)]


@pytest.mark.parametrize(("batch", "event"), SAMPLES)
def test_sums_per_sample(library: ctypes.CDLL, batch: int, event: int) -> None:
    """Samples smaller than, as large as and much larger than a tile, whose borders fall anywhere."""
    for dtype in (F32, F64):
        case = Case(dtype, Layout(1, batch * event), batch=batch)
        run_forward(library, case, z=False, reduction="batch")
        run_forward(library, case, z=False, reduction="batchmean")
        if 0 < batch * event < 20_000:
            run_backward(library, case, z=False, reduction="batch")


def test_the_order_of_threads_does_not_matter(library: ctypes.CDLL) -> None:
    """Same bits with blocks and threads run backwards: no result depends on who comes first."""
    cases = ((Layout(1, 9000), 300), (Layout(1, 9000), 2), (Layout(33, 128, 200), 33), (Layout(3, 1665, 2000), 3))
    for layout, batch in cases:
        case = Case(F32, layout, seed=3, batch=batch)
        runs = []
        for backwards in (0, 1):
            library.run_reversed(backwards)
            forward = [run_forward(library, case, z=True, reduction=r) for r in ("batch", "batchmean")]
            runs.append([*forward, run_backward(library, case, z=True, reduction="batch")])
        library.run_reversed(0)
        for first, second in zip(*runs):
            for name in first:
                assert np.array_equal(first[name], second[name]), name


@dtypes
def test_extreme_inputs(library: ctypes.CDLL, dtype: Dtype) -> None:
    """NaN in is NaN out at the same place only; near the prior nothing cancels; far from it only the bound counts."""
    with np.errstate(over="ignore", invalid="ignore"):
        for clamp in (NONE, HARD, SOFT):
            m = np.array([0.0, np.nan, 0.0, 1e-3, 0.0, 0.0, 0.0, 3.0])
            l = np.array([0.0, 0.0, np.nan, 1e-3, -40.0, 25.0, 1e-2, -1e-3])  # noqa: E741
            s = Setup(Case(dtype, Layout(1, 8), clamp))
            s.x = {"mean": dtype.round(m), "logvar": dtype.round(l)}
            for name, memory in s.memory.items():
                memory.typed[memory.positions] = dtype.encode(s.x[name])
            kl, z = s.room(dtype.arithmetic, Layout(1, 8)), s.room(dtype, Layout(1, 8))
            p = Forward(kl=kl.address, z=z.address)
            s.fill(p)
            s.set_noise(p)
            assert library.forward_kernel(ctypes.byref(p)) == 0
            value = bound(s.x["logvar"], clamp)[0]
            want = divergence(s.x["mean"], value, 0.0, np.zeros(1))[0]
            rtol = 1e-12 if dtype is F64 else 1e-5
            check(kl.values(), want, rtol, f"kl, clamp {clamp}", 1e-30 if clamp != SOFT else 1e-12)
            finite = np.abs(z.values()) < np.inf
            assert np.array_equal(np.isnan(z.values()), np.isnan(m) | np.isnan(l))
            want = dtype.round(s.x["mean"] + np.exp(value / 2) * s.noise)
            check(z.values()[finite], want[finite], 4 * dtype.rtol, f"z, clamp {clamp}")


def test_free_bits_stop_the_gradient_at_equality(library: ctypes.CDLL) -> None:
    """Mean 1, variance 1 is a KL of exactly 1/2, in all types: the floor holds there, and is left just below."""
    for dtype, pair, (free, passes) in itertools.product(DTYPES, (False, True), ((0.5, 0.0), (0.499, 1.0))):
        s = Setup(Case(dtype, Layout(1, 5), free_bits=free, pair=pair))
        for name, memory in s.memory.items():
            memory.typed[memory.positions] = dtype.encode(np.full(5, 1.0 if name == "mean" else 0.0))
        grad, d_mean = s.room(dtype.arithmetic, Layout(1, 1), np.ones(1)), s.room(dtype, Layout(1, 5))
        p = Backward(grad_kl=grad.address, scale=1.0, sample=5, d_mean=d_mean.rows(), out_cols=5, other_out_cols=5)
        s.fill(p)
        assert library.backward_kernel(ctypes.byref(p)) == 0
        assert d_mean.values().tolist() == [passes] * 5


def test_a_grid_beyond_the_limit_is_refused(library: ctypes.CDLL) -> None:
    p = Forward(numel=2**31 * 2048 + 1, cols=2**31 * 2048 + 1, z=64, noise=64, mean=Rows(64, 0), logvar=Rows(64, 0))
    invalid_configuration = 9
    assert library.forward_kernel(ctypes.byref(p)) == invalid_configuration


def touch_only_what_is_theirs(library: ctypes.CDLL) -> Iterator[str]:
    """Runs every kernel on memory that ends where a forbidden page begins."""
    cases = itertools.product(DTYPES, (Layout(1, 63), Layout(1, 4097), *ROWS), (None, 7))
    for dtype, layout, seed in cases:
        case = Case(dtype, layout, SOFT, 0.25, seed, batch=layout.rows, protected=True)
        for reduction in ("none", "batch"):
            run_forward(library, case, z=True, reduction=reduction)
            run_backward(library, case, z=True, reduction=reduction)
            run_forward(library, case._replace(pair=True), z=False, reduction=reduction)
            run_backward(library, case._replace(pair=True), z=False, reduction=reduction)
        yield f"{dtype.name} {layout}"


def test_no_access_outside(built: Path) -> None:
    """In a process of its own, because one stray read ends it."""
    module = [sys.executable, "-m", "kernels.test_cuda_emulated", str(built)]
    done = subprocess.run(module, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, f"died after: {done.stdout[-200:]}\n{done.stderr[-2000:]}"


if __name__ == "__main__":
    for survived in touch_only_what_is_theirs(load(Path(sys.argv[1]))):
        print(survived, flush=True)
