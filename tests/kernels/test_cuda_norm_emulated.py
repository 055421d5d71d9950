"""The CUDA group norm's logic without a GPU: csrc/cuda/norm_act.cu built by g++ through cuda_on_cpu.h.

The oracle is torch's group norm in float64, with what is around it written out. Outputs and workspace lie in memory
full of NaN, with more of it on both sides that must stay as it is; inputs lie in NaN too. How the work is cut is asked
for (so many blocks to a cluster, so many groups together) or left to the kernels on GPUs of several sizes.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from .cuda_on_cpu import build

ENTRY = """
#include "cuda/norm_act.cu"
using namespace genmod::cuda;
extern "C" {
int group_norm_on_cpu(const GroupNorm* p) { return group_norm(*p, nullptr); }
int64_t workspace(const GroupNorm* p) { return group_norm_workspace(*p); }
void run_reversed(int on) { cuda_on_cpu::reversed = on; }
void set_device(int processors, int major, int shared, int cluster) {
  cuda_on_cpu::device.processors = processors;
  cuda_on_cpu::device.major = major;
  cuda_on_cpu::device.shared_of_block = shared;
  cuda_on_cpu::device.shared_of_processor = shared + 1024;
  cuda_on_cpu::device.largest_cluster = (unsigned)cluster;
}
void cut_of(const GroupNorm* p, int device, int64_t* out) {
  with_kernels(*p, 0, [&](auto kernels) {
    const NormCut c = kernels.cut(*p, device);
    const int64_t all[] = {c.split, c.blocks, c.together, c.slices, c.kept, c.packs, c.threads, c.bytes};
    memcpy(out, all, sizeof(all));
    return 0;
  });
}
}
"""

ACTIVATIONS = ("identity", "relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid")
CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
DTYPES = tuple(CODES)
# Of a result's rounding, and of the arithmetic before it.
ROUNDING = {torch.float32: 2.0**-23, torch.float64: 2.0**-52, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
GUARD = 64  # bytes


class Parameter(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("dtype", ctypes.c_int), ("stride", ctypes.c_int64))


class GroupNorm(ctypes.Structure):
    _fields_ = (
        ("dtype", ctypes.c_int),
        ("activation", ctypes.c_int),
        ("eps", ctypes.c_double),
        ("negative_slope", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("samples", "channels", "space", "groups")),
        ("channels_last", ctypes.c_bool),
        ("x", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        *((name, Parameter) for name in ("weight", "bias", "scale", "shift")),
        *((name, ctypes.c_void_p) for name in ("y", "total", "mean", "rstd", "workspace")),
        ("cluster", ctypes.c_int),
        ("together", ctypes.c_int),
    )


class Cut(NamedTuple):
    split: int
    blocks: int
    together: int
    slices: int
    kept: int
    packs: int
    threads: int
    bytes: int


class Case(NamedTuple):
    samples: int
    channels: int
    space: int
    groups: int
    last: bool = False
    dtype: torch.dtype = torch.float32
    cluster: int = 0
    together: int = 0
    activation: str = "silu"
    residual: bool = False
    weight: bool = True
    bias: bool = True
    modulated: bool = False
    parameters: torch.dtype | None = None
    shift: float = 0.5  # the mean of x
    offset: int = 0  # elements by which x is off an aligned address


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path: Path = build(tmp_path_factory.mktemp("norm_on_cpu"), ENTRY)
    library = ctypes.CDLL(str(path))
    library.workspace.restype = ctypes.c_int64
    return library


@pytest.fixture(autouse=True)
def ordinary_device(library: ctypes.CDLL) -> None:
    set_device(library)


_devices = itertools.count()


def set_device(
    library: ctypes.CDLL, *, processors: int = 4, major: int = 9, shared: int = 227 << 10, cluster: int = 16
) -> None:
    library.set_device(processors, major, shared, cluster)


class Memory:
    """A tensor's numbers in a sea of NaN. 0xFF is NaN in every type."""

    def __init__(self, numel: int, dtype: torch.dtype, values: Tensor | None = None, offset: int = 0) -> None:
        size = dtype.itemsize
        self.raw = torch.full((numel * size + 2 * GUARD + offset * size + 64,), 255, dtype=torch.uint8)
        start = -self.raw.data_ptr() % 64
        self.first = start + GUARD + offset * size
        self.tensor = self.raw[self.first :][: numel * size].view(dtype)
        if values is not None:
            self.tensor.copy_(values.reshape(-1))
        self.before = self.raw.clone()

    @property
    def address(self) -> int:
        return self.raw.data_ptr() + self.first

    def check(self, written: bool) -> None:
        expected = self.before.clone()
        if written:
            span = slice(self.first, self.first + self.tensor.numel() * self.tensor.element_size())
            expected[span] = self.raw[span]
        assert torch.equal(self.raw, expected), "a kernel wrote outside of its output"


def drawn(case: Case) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(case.channels * case.space + case.samples)

    def draw(*shape: int, scale: float = 1.0, shift: float = 0.0, dtype: torch.dtype = case.dtype) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift).to(dtype)

    n, c, s = case.samples, case.channels, case.space
    parameters = case.parameters or case.dtype
    return {
        "x": draw(n, c, s, shift=case.shift),
        "residual": draw(n, c, s) if case.residual else None,
        "weight": draw(c, scale=0.5, shift=1.0, dtype=parameters) if case.weight else None,
        "bias": draw(c, scale=0.5, dtype=parameters) if case.bias else None,
        "scale": draw(n, c, scale=0.5, dtype=parameters) if case.modulated else None,
        "shift": draw(n, c, scale=0.5, dtype=parameters) if case.modulated else None,
    }


def in_memory_order(t: Tensor, case: Case) -> Tensor:
    return t.transpose(1, 2).contiguous() if case.last else t


def parameters_for(case: Case, library: ctypes.CDLL, inputs: dict[str, Tensor | None]) -> tuple[GroupNorm, dict]:
    p = GroupNorm(CODES[case.dtype], ACTIVATIONS.index(case.activation), 1e-5, 0.2)
    p.samples, p.channels, p.space, p.groups = case.samples, case.channels, case.space, case.groups
    p.channels_last, p.cluster, p.together = case.last, case.cluster, case.together
    memory = {}
    for name, value in inputs.items():
        if value is None:
            continue
        big = value.dim() == 3
        values = in_memory_order(value, case) if big else value
        memory[name] = Memory(values.numel(), values.dtype, values, case.offset if big else 0)
        if big:
            setattr(p, name, memory[name].address)
        else:
            stride = case.channels if value.dim() == 2 else 0
            setattr(p, name, Parameter(memory[name].address, CODES[value.dtype], stride))
    return p, memory


def run(library: ctypes.CDLL, case: Case, inputs: dict[str, Tensor | None] | None = None) -> dict[str, Tensor]:
    """Runs a case and checks that it wrote what it should and nothing else."""
    inputs = drawn(case) if inputs is None else inputs
    p, memory = parameters_for(case, library, inputs)
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    numel, statistics = case.samples * case.channels * case.space, case.samples * case.groups
    outputs = {"y": Memory(numel, case.dtype, None, case.offset)}
    if case.residual:
        outputs["total"] = Memory(numel, case.dtype, None, case.offset)
    outputs |= {name: Memory(statistics, wide) for name in ("mean", "rstd")}
    for name, m in outputs.items():
        setattr(p, name, m.address)
    workspace = Memory(library.workspace(ctypes.byref(p)), wide)
    p.workspace = workspace.address
    assert library.group_norm_on_cpu(ctypes.byref(p)) == 0
    for m in memory.values():
        m.check(written=False)
    for m in (*outputs.values(), workspace):
        m.check(written=True)
    results = {name: m.tensor for name, m in outputs.items()}
    for name in ("y", "total"):
        if name in results:
            shape = (case.samples, case.space, case.channels) if case.last else (-1, case.channels, case.space)
            results[name] = results[name].reshape(shape if numel else (case.samples, *shape[1:]))
            results[name] = results[name].transpose(1, 2) if case.last else results[name]
    return results


def cut_of(library: ctypes.CDLL, case: Case) -> Cut:
    p, memory = parameters_for(case, library, drawn(case))
    p.y = memory["x"].address
    out = (ctypes.c_int64 * len(Cut._fields))()
    library.cut_of(ctypes.byref(p), 0, out)
    return Cut(*out)


def activated(name: str, z: Tensor) -> Tensor:
    if name == "leaky_relu":
        return F.leaky_relu(z, 0.2)
    functions: dict[str, Any] = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu, "tanh": z.tanh, "sigmoid": z.sigmoid}
    return z if name == "identity" else functions[name]() if name in ("tanh", "sigmoid") else functions[name](z)


def expected(case: Case, inputs: dict[str, Tensor | None]) -> dict[str, Tensor]:
    x, r, w, b, scale, shift = (None if t is None else t.double() for t in inputs.values())
    results = {}
    if r is not None:
        x = results["total"] = (x + r).to(case.dtype).double()
    by_group = x.reshape(case.samples, case.groups, case.channels // case.groups * case.space)
    mean = by_group.mean(2, keepdim=True)
    results["mean"] = mean.reshape(-1)
    rstd = (by_group.sub(mean).square().mean(2, keepdim=True) + 1e-5).rsqrt()
    results["rstd"] = rstd.reshape(-1)
    z = ((by_group - mean) * rstd).reshape(x.shape)
    for parameter, combine in ((w, torch.mul), (b, torch.add)):
        z = z if parameter is None else combine(z, parameter[None, :, None])
    z = z if scale is None else z * (1 + scale[:, :, None]) + shift[:, :, None]
    results["y"] = activated(case.activation, z)
    return results


def check(library: ctypes.CDLL, case: Case) -> dict[str, Tensor]:
    inputs = drawn(case)
    results, want = run(library, case, inputs), expected(case, inputs)
    arithmetic = 2.0**-52 if case.dtype == torch.float64 else 2.0**-23
    size = 1 + abs(case.shift)
    for name, got in results.items():
        rounding = ROUNDING[case.dtype] if name in ("y", "total") else arithmetic
        atol = 16 * arithmetic * (size if name == "mean" else 1)
        # An empty group has no mean; else nothing is NaN.
        torch.testing.assert_close(
            got.double(),
            want[name],
            rtol=2 * rounding + 16 * arithmetic,
            atol=atol,
            equal_nan=True,
            msg=functools.partial("{}: {}".format, name),
        )
    return results


dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
layouts = pytest.mark.parametrize("last", [False, True], ids=("contiguous", "channels_last"))

SHAPES = [
    (1, 1, 1, 1),
    (2, 4, 15, 2),
    (1, 6, 21, 6),
    (3, 14, 5, 1),
    (2, 16, 64, 4),  # whole packs
    (2, 32, 64, 8),
    (1, 40, 50, 4),  # ten channels to a group
    (1, 24, 40, 8),  # three
    (2, 8, 600, 2),
    (5, 8, 1, 2),
    (0, 4, 9, 2),
    (2, 4, 0, 2),
]


@layouts
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_shapes(library: ctypes.CDLL, shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> None:
    """As the kernels cut it, in clusters of every size, and in pieces; the options take turns."""
    for number, cluster in enumerate((0, 1, 2, 16, -1)):
        turn = number + shape[1]
        case = Case(
            *shape,
            last,
            dtype,
            cluster,
            activation=ACTIVATIONS[turn % 7],
            residual=turn % 2 == 0,
            weight=turn % 5 != 1,
            bias=turn % 3 != 1,
            modulated=turn % 3 == 0,
            parameters=torch.float32 if turn % 4 == 0 and dtype != torch.float64 else None,
        )
        check(library, case)


@layouts
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(library: ctypes.CDLL, activation: str, last: bool) -> None:
    for dtype in DTYPES:
        check(library, Case(1, 16, 48, 2, last, dtype, activation=activation, modulated=True))


@layouts
@dtypes
def test_large_groups(library: ctypes.CDLL, dtype: torch.dtype, last: bool) -> None:
    """Many packs to a thread, several blocks or pieces to a group."""
    for cluster, space in ((1, 4096), (4, 4096), (8, 4099), (-1, 9000), (-1, 8999)):
        case = Case(1, 16, space, 4, last, dtype, cluster, residual=cluster == 4)
        check(library, case)
        assert cluster == -1 or not cut_of(library, case).split


@layouts
def test_what_does_not_fit_is_read_again(library: ctypes.CDLL, last: bool) -> None:
    set_device(library, shared=40 << 10)
    for dtype, residual in itertools.product((torch.float32, torch.bfloat16), (False, True)):
        case = Case(1, 8, 24576 * 4 // dtype.itemsize, 2, last, dtype, cluster=8, residual=residual, together=1)
        cut = cut_of(library, case)
        assert not cut.split and 0 < cut.kept < cut.packs
        check(library, case)


def test_groups_together(library: ctypes.CDLL) -> None:
    """Neighbouring groups in a cluster: rows whose threads are a power of two apart, and others; packs of one group,
    and of several."""
    shapes = ((32, 8, 1), (32, 8, 2), (32, 8, 8), (32, 16, 4), (64, 4, 2), (48, 8, 4), (40, 4, 4), (64, 64, 32))
    for channels, groups, together in (*shapes, (20, 5, 5)):
        for dtype, cluster in itertools.product((torch.float32, torch.bfloat16), (1, 4, -1)):
            case = Case(2, channels, 301, groups, True, dtype, cluster, together)
            pack = 16 // dtype.itemsize if channels % (16 // dtype.itemsize) == 0 else 1
            if (channels // groups * together) % pack == 0:
                assert cut_of(library, case).together == together
            check(library, case)


def test_wide_groups_are_sliced(library: ctypes.CDLL) -> None:
    for dtype, channels in ((torch.float32, 4000), (torch.bfloat16, 1001), (torch.float64, 771)):
        case = Case(2, channels, 7, 1, True, dtype)
        assert cut_of(library, case).slices > 1
        check(library, case)


@layouts
@dtypes
def test_far_from_zero(library: ctypes.CDLL, dtype: torch.dtype, last: bool) -> None:
    """A mean of a thousand deviations: no worse than twice torch's error."""
    for cluster in (1, 8, -1):
        case = Case(2, 16, 900, 4, last, dtype, cluster, activation="identity", shift=1000.0, residual=cluster == 8)
        inputs = drawn(case)
        results, want = run(library, case, inputs), expected(case, inputs)
        total = want["total"].to(dtype) if case.residual else inputs["x"]
        stock = F.group_norm(total, 4, inputs["weight"], inputs["bias"], 1e-5)
        error, of_torch = ((y.double() - want["y"]).abs().max() for y in (results["y"], stock))
        assert error <= 2 * of_torch + ROUNDING[dtype]
        torch.testing.assert_close(results["rstd"].double(), want["rstd"], rtol=1e-5, atol=0)


@layouts
def test_unaligned(library: ctypes.CDLL, last: bool) -> None:
    for dtype in DTYPES:
        for cluster in (1, 4, -1):
            check(library, Case(2, 16, 128, 4, last, dtype, cluster, offset=1, residual=True))


@layouts
def test_the_order_of_threads_does_not_matter(library: ctypes.CDLL, last: bool) -> None:
    """The same bits with threads and blocks backwards, and, of the numbers of a cluster's blocks, near to any other."""
    for cluster, dtype in itertools.product((1, 8, -1), (torch.float32, torch.bfloat16)):
        case = Case(2, 32, 600, 8, last, dtype, cluster, residual=True)
        forwards = run(library, case)
        library.run_reversed(1)
        backwards = run(library, case)
        library.run_reversed(0)
        for name in forwards:
            assert torch.equal(forwards[name], backwards[name]), name


@layouts
def test_not_finite(library: ctypes.CDLL, last: bool) -> None:
    """NaN or infinity in a group is NaN in all of it and nowhere else."""
    for value, cluster in itertools.product((float("nan"), float("inf"), float("-inf")), (1, 4, -1)):
        case = Case(2, 16, 60, 4, last, torch.float32, cluster)
        inputs = drawn(case)
        clean = run(library, case, inputs)["y"]
        inputs["x"][1, 5, 33] = value
        y = run(library, case, inputs)["y"]
        assert y[1, 4:8].isnan().all()
        clean[1, 4:8] = y[1, 4:8] = 0
        assert torch.equal(y, clean)


H100 = {"processors": 132, "shared": 227 << 10}
CHOICES = [  # samples, channels, space, groups, channels_last, dtype; then what is wanted
    ((1, 512, 128 * 128, 32, False, torch.bfloat16), {"split": 0, "blocks": 8, "whole": True}),
    ((1, 512, 256 * 256, 32, False, torch.bfloat16), {"split": 0, "blocks": 16, "whole": True}),
    ((1, 256, 512 * 512, 32, False, torch.bfloat16), {"split": 0, "blocks": 16, "whole": False}),
    ((1, 128, 1024 * 1024, 32, False, torch.bfloat16), {"split": 1}),
    ((8, 256, 64 * 64, 32, False, torch.bfloat16), {"split": 0, "whole": True}),
    ((16, 128, 64 * 64, 32, True, torch.bfloat16), {"split": 0, "together": 16, "whole": True}),
    ((1, 512, 128 * 128, 32, True, torch.bfloat16), {"split": 0, "together": 4, "whole": True}),
    ((1, 128, 1024 * 1024, 32, True, torch.bfloat16), {"split": 1, "together": 16}),
    ((1, 64, 1024 * 256, 1, False, torch.float32), {"split": 1}),  # one cluster would leave most of the GPU idle
]


def test_choices(library: ctypes.CDLL) -> None:
    """Where clusters are taken on an H100, and that every launch fits."""
    set_device(library, **H100)
    for (n, c, s, g, last, dtype), want in CHOICES:
        p = GroupNorm(CODES[dtype], 0, 1e-5, 0.2, n, c, s, g, last, 1 << 20)
        p.y = 1 << 20
        out = (ctypes.c_int64 * len(Cut._fields))()
        library.cut_of(ctypes.byref(p), 100, out)
        cut = Cut(*out)
        got = cut._asdict() | {"whole": cut.kept == cut.packs}
        assert {k: got[k] for k in want} == want, (n, c, s, got)
        assert cut.bytes <= 227 << 10


def test_without_clusters(library: ctypes.CDLL) -> None:
    """On older chips a group stays in one block or is split; on a part of a chip, clusters are as large as it has."""
    set_device(library, major=8, shared=99 << 10)
    for space, split in ((1024, 0), (40000, 1)):
        case = Case(1, 16, space, 2, dtype=torch.float32)
        p, memory = parameters_for(case, library, drawn(case))
        p.y = memory["x"].address
        out = (ctypes.c_int64 * len(Cut._fields))()
        library.cut_of(ctypes.byref(p), 101, out)
        cut = Cut(*out)
        assert (cut.split, cut.blocks == 1) == (split, not split)
        check(library, case)
    set_device(library, cluster=4, shared=60 << 10)
    out = (ctypes.c_int64 * len(Cut._fields))()
    library.cut_of(ctypes.byref(p), 102, out)
    assert Cut(*out).split or Cut(*out).blocks <= 4


def test_a_grid_beyond_the_limit_is_refused(library: ctypes.CDLL) -> None:
    p = GroupNorm(0, 0, 1e-5, 0.2, 2**31, 2, 4, 2, False, 64)
    invalid_configuration = 9
    assert library.group_norm_on_cpu(ctypes.byref(p)) == invalid_configuration
