"""The interpreter that stands in for a GPU in tests must itself compute what a GPU would."""

from __future__ import annotations

import os
import subprocess
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def _arithmetic(x, y, total, added, product, larger, above, whole, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(added + i, a + b)
    tl.store(product + i, a * b)
    tl.store(larger + i, tl.where(a > b, a, b))
    tl.store(above + i, (a > b).to(tl.int32))
    tl.store(whole + i, a.to(tl.int32).to(tl.bfloat16))
    tl.store(total, tl.sum(a, axis=0))


@triton.jit
def _round(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i).to(tl.bfloat16))


@triton.jit
def _product(x, y, z, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    place = i[:, None] * BLOCK + i[None, :]
    tl.store(z + place, tl.dot(tl.load(x + place), tl.load(y + place)))


@triton.jit
def _count(bound, total):
    found = 0
    for i in range(tl.load(bound)):
        found += i
    tl.store(total, found)


def test_bfloat16_arithmetic() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(64, generator=generator).bfloat16() for _ in range(2))
    added, product, larger, whole = (torch.empty_like(x) for _ in range(4))
    above, total = torch.empty(64, dtype=torch.int32), torch.empty(1, dtype=torch.bfloat16)
    _arithmetic[(1,)](x, y, total, added, product, larger, above, whole, BLOCK=64)
    assert torch.equal(added, x + y)
    assert torch.equal(product, x * y)
    assert torch.equal(larger, torch.maximum(x, y))
    assert torch.equal(above, (x > y).int())
    assert torch.equal(whole, x.int().bfloat16())
    assert total == x.sum()


def test_bfloat16_rounds_to_nearest_even() -> None:
    corners = [1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, float("inf"), float("nan"), 0.0, -0.0, 1e-40]
    x = torch.cat((torch.randn(56), torch.tensor(corners)))
    y = torch.empty(64, dtype=torch.bfloat16)
    _round[(1,)](x, y, BLOCK=64)
    assert torch.equal(y.view(torch.int16)[:-4], x.bfloat16().view(torch.int16)[:-4])
    torch.testing.assert_close(y, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_bfloat16_dot() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(16, 16, generator=generator).bfloat16() for _ in range(2))
    z = torch.empty(16, 16)
    _product[(1,)](x, y, z, BLOCK=16)
    torch.testing.assert_close(z, x.float() @ y.float())


def test_loop_with_a_bound_known_at_run_time() -> None:
    total = torch.zeros(1, dtype=torch.int32)
    _count[(1,)](torch.tensor([5], dtype=torch.int32), total)
    assert total == 10


def test_triton_may_have_been_imported_before() -> None:
    code = """
import triton, triton.language
import genmod.testing.interpreter, torch
from genmod.kernels import gaussian
z = gaussian.reparameterize(torch.zeros(2, 3), torch.zeros(2, 3), None, torch.tensor(1), "none")
assert z.std() > 0
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
