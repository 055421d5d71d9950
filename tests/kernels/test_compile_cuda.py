"""Every CUDA C++ kernel compiles for each generation of GPU, fits in registers, and uses no more than any block may."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from genmod.testing import compile_cuda
from genmod.testing.compile_only import Row

pytestmark = pytest.mark.slow

SHARED_LIMIT = 48 * 1024  # what a block gets on every GPU without asking for more


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    if reason := compile_cuda.missing():
        pytest.skip(reason)
    return compile_cuda.rows()


def test_every_kernel_on_every_target(rows: list[Row]) -> None:
    kernels = {row.kernel for row in rows}
    assert Counter(row.target for row in rows) == {target: len(kernels) for target in compile_cuda.TARGETS}
    files = {source.stem for source in (compile_cuda.CSRC / "cuda").glob("*.cu")}
    assert {kernel.split(":")[0] for kernel in kernels} == files


def test_nothing_spills(rows: list[Row]) -> None:
    assert [row for row in rows if row.spilled] == []


def test_shared_memory_fits(rows: list[Row]) -> None:
    assert [row for row in rows if row.shared > SHARED_LIMIT] == []


# What a kernel is named, and with it the elements that it moves at once.
NAME = re.compile(r"(?P<family>\w+): (?P<kernel>\w+)<(?P<dtype>f32|f64|bf16|f16)(?:, (?P<pack>\d+)\b)?")
BITS = {"f32": 32, "f64": 64, "bf16": 16, "f16": 16}
OF_RESULTS = ("finish", "combine")  # kernels that join a few partial results


def test_packs_are_moved_by_wide_accesses(rows: list[Row]) -> None:
    """Packs of as many elements as the kernel is for, or else of four: 128 bits of float, 64 of a 16-bit type. A lost
    alignment shows here first. Kernels for packs of one are there for what is not aligned."""
    if not any(row.instructions for row in rows):
        pytest.skip("nvdisasm was not found")
    wide: Counter[str] = Counter()
    for row in rows:
        name = NAME.match(row.kernel)
        if name is None or name["kernel"] in OF_RESULTS or (name["family"] == "gaussian" and name["dtype"] == "f64"):
            continue
        elements = int(name["pack"] or 4)
        bits = min(elements * BITS[name["dtype"]], 128)
        reads, _, writes = row.accesses.partition(", ")
        assert f"×{bits}" in reads, row
        if name["pack"] and name["kernel"] != "pieces":  # which writes statistics only, without a residual
            assert f"×{bits}" in writes, row
        wide[name["family"]] += elements > 1
    assert set(wide) == {row.kernel.split(":")[0] for row in rows} and all(wide.values())
