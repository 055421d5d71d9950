"""Every CUDA C++ kernel compiles for each generation of GPU, fits in registers, and uses no more than any block may."""

from __future__ import annotations

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


def test_packs_are_moved_by_wide_accesses(rows: list[Row]) -> None:
    """Whole packs of four: 128 bits of float, 64 of a 16-bit type. A lost alignment shows here first."""
    if not any(row.instructions for row in rows):
        pytest.skip("nvdisasm was not found")
    for row in rows:
        for dtype, bits in (("f32", 128), ("bf16", 64), ("f16", 64)):
            if f"<{dtype}" in row.kernel and "finish" not in row.kernel:
                reads = row.accesses.split(", ")[0]
                assert f"×{bits}" in reads, row
