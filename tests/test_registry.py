"""The definition of done, held: an op that lacks a piece fails here, with the piece's name."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from pathlib import Path

import pytest
import torch

from genmod import backends, nn, ops
from genmod.registry import OpSpec
from genmod.specs import specs

ROOT = Path(__file__).parents[1]


def functions_in(file: Path) -> set[str]:
    """Names of the top-level functions of a Python file, without importing it."""
    if not file.exists():
        return set()
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def imported_by(file: Path) -> set[str]:
    """Names that a module takes from others of kernels/."""
    if not file.exists():
        return set()
    imports = (node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ImportFrom))
    return {alias.name for node in imports if (node.module or "").startswith("genmod.kernels.") for alias in node.names}


def text_of(path: str) -> str:
    file = ROOT / path
    return file.read_text() if file.exists() else ""


def missing_pieces(spec: OpSpec) -> list[str]:
    """What the recipe of docs/add_an_op.md asks for and this op does not have."""
    family, missing = spec.family, []

    def need(piece: str, present: object) -> None:
        if not present:
            missing.append(piece)

    for op in spec.dispatcher_ops:
        home = backends.family_of(op) or family  # that of another family, for an op made of others
        need(f"genmod/reference/{home}.py: {op}", op in functions_in(ROOT / f"genmod/reference/{home}.py"))
        # A family that needs several modules has its launchers in the one of its name all the same.
        launchers = functions_in(ROOT / f"kernels/{home}.py") | imported_by(ROOT / f"kernels/{home}.py")
        need(f"kernels/{home}.py: {op}", op in launchers)
        need(f"csrc/ops/{home}.cpp: {op}", f'm.impl("{op}"' in text_of(f"csrc/ops/{home}.cpp"))
        need(f"genmod/ops/{home}.py: schema of {op}", op in backends.ops())
        if op in backends.ops():
            for key in ("Autograd", "Meta"):
                found = torch._C._dispatch_has_kernel_for_dispatch_key(f"genmod::{op}", key)
                need(f"genmod/ops/{home}.py: {key} of {op}", found)
    need(f"csrc/cpu/{family}.cpp", (ROOT / f"csrc/cpu/{family}.cpp").exists())
    need(f"genmod.ops.{spec.name}", spec.name in ops.__all__ and getattr(ops, spec.name) is spec.public)
    doc = spec.public.__doc__ or ""
    need(f"docstring of genmod.ops.{spec.name}", "Returns:" in doc and ("Args" in doc))
    need("modules", spec.modules and all(hasattr(nn, name) for name in spec.modules))
    need(f"genmod/nn/{family}.py", (ROOT / f"genmod/nn/{family}.py").exists())
    need(f"tests/ops/test_{family}.py", (ROOT / f"tests/ops/test_{family}.py").exists())
    samples = list(spec.samples(torch.device("cpu"), torch.float32))
    need("samples", len(samples) >= 10)
    need("an empty sample", any(t.numel() == 0 for s in samples for t in s.tensors()))
    need("a non-contiguous sample", any(not t.is_contiguous() for s in samples for t in s.tensors()))
    need("bad calls", len(list(spec.bad_calls())) >= 5)
    need("workloads", spec.workloads)
    need("gradient order", spec.gradient_order in (0, 1, 2))
    for workload in spec.workloads[:1]:
        sample = workload.make(torch.device("cpu"), torch.float32)
        need("bytes and flops", spec.bytes_moved(sample, True) > 0 and spec.flops(sample, True) > 0)
    need("a line in README.md", f"`{spec.name}`" in text_of("README.md"))
    need("a row in docs/proven.md", f"`{spec.name}`" in text_of("docs/proven.md"))
    return missing


@pytest.mark.parametrize("spec", specs().values(), ids=specs())
def test_no_op_lacks_a_piece(spec):
    assert missing_pieces(spec) == []


def test_a_missing_piece_is_named():
    spec = next(iter(specs().values()))
    bare = dataclasses.replace(spec, name="softmax", family="attention", dispatcher_ops=("softmax",), modules=())
    missing = missing_pieces(bare)
    for piece in ("genmod/reference/attention.py: softmax", "kernels/attention.py: softmax", "genmod.ops.softmax"):
        assert piece in missing
    assert any("README" in piece for piece in missing)


def test_every_dispatcher_op_belongs_to_a_spec():
    assert set(backends.ops()) == {op for spec in specs().values() for op in spec.dispatcher_ops}


def cuda_ops(family: str) -> set[str]:
    """What csrc/ops/f_cuda.cpp gives kernels to; a family may have them for some of its ops only."""
    return set(re.findall(r'm\.impl\("(\w+)"', text_of(f"csrc/ops/{family}_cuda.cpp")))


@pytest.mark.parametrize("family", sorted(file.stem for file in (ROOT / "csrc/cuda").glob("*.cu")))
def test_cuda_ops_are_dispatcher_ops_and_have_schemas(family):
    """Besides, an op may have one that measurements use, called op_cut."""
    implemented, ops_of_family = cuda_ops(family), {op for op in backends.ops() if backends.family_of(op) == family}
    assert implemented & ops_of_family
    assert {op.removesuffix("_cut") for op in implemented} <= ops_of_family
    defined = re.findall(r'm\.def\(\s*"(\w+)\(', text_of(f"csrc/ops/{family}_cuda.cpp"))
    assert sorted(defined) == sorted(implemented)


@pytest.mark.parametrize("spec", specs().values(), ids=specs())
def test_docs_say_which_ops_have_cuda_kernels(spec):
    """In docs/proven.md, the column CUDA C++: none, or what of the op it has if that is not all."""
    row = next(line for line in text_of("docs/proven.md").splitlines() if line.startswith(f"| `{spec.name}` |"))
    cell = row.split("|")[5].strip()
    have = [op in cuda_ops(backends.family_of(op) or spec.family) for op in spec.dispatcher_ops]
    assert (cell == "none") == (not any(have)), cell
    assert cell.startswith(("forward only", "no second derivatives")) == (any(have) and not all(have)), cell


@pytest.mark.parametrize("spec", specs().values(), ids=specs())
def test_every_launcher_is_compiled_ahead_of_time(spec):
    pytest.importorskip("triton")
    if spec.vendor:
        assert not hasattr(importlib.import_module(f"genmod.kernels.{spec.family}"), "COMPILE_CASES")
        return
    families = {backends.family_of(op) for op in spec.dispatcher_ops}
    cases = [c for f in families for c in importlib.import_module(f"genmod.kernels.{f}").COMPILE_CASES]
    assert set(spec.dispatcher_ops) <= {name.split(",")[0] for name in cases}
