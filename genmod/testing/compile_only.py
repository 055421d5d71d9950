"""Compile every Triton kernel for GPUs that are not here, and read what they would use.

    python -m genmod.testing.compile_only [--markdown FILE]

Each family lists calls of its ops on meta tensors, `COMPILE_CASES`. What they launch is recorded and compiled with the
types, constants and alignments that Triton derives from the same arguments at a real launch, so it is the real kernel.
Registers, stack and local memory (that is where spills go), shared memory and instructions are read from the binaries
with the tools that come with Triton. Not for a process in which the interpreter was imported.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import re
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

TARGETS = (80, 90, 100)


class Row(NamedTuple):
    """What one kernel uses on one target. Bytes are per thread, those of shared memory per block."""

    kernel: str
    target: str
    registers: int
    spilled: int  # stack and local memory
    shared: int
    instructions: int
    accesses: str  # how global memory is read and written: instructions by width in bits


def families() -> list[str]:
    """Modules of kernels that list cases to compile."""
    kernels = importlib.import_module("genmod.kernels")
    names = [module.name for module in pkgutil.iter_modules(kernels.__path__)]
    return [name for name in names if hasattr(importlib.import_module(f"genmod.kernels.{name}"), "COMPILE_CASES")]


def compile_case(family: str, case: str, capability: int) -> list[Row]:
    """Compile what one case launches, for one compute capability (90 is sm_90)."""
    from genmod.kernels.launch import recording

    with recording() as launches:
        importlib.import_module(f"genmod.kernels.{family}").COMPILE_CASES[case]()
    return [_inspect(f"{family}: {case}", f"sm_{capability}", _compile(launch, capability)) for launch in launches]


def _compile(launch: Any, capability: int) -> Any:
    """The compiled kernel, by the steps of `JITFunction.run` that need no GPU (the same in triton 3.6 and 3.7)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import JITFunction, create_function_from_signature

    kernel = launch.kernel
    if not isinstance(kernel, JITFunction):
        raise RuntimeError("the Triton interpreter is on in this process; compile in another one")
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    arguments = {**launch.arguments, "num_warps": launch.num_warps, "debug": False}
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(**arguments)
    options, signature, constants, attributes = kernel._pack_args(backend, arguments, bound, specialization, options)
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=options.__dict__)


def _inspect(kernel: str, target: str, compiled: Any) -> Row:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump shows no resource usage for {kernel} on {target}: {usage}")
    registers, stack, local = map(int, found.groups())
    instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", code)
    shared = compiled.metadata.shared  # asked for at launch, so not in the binary
    return Row(kernel, target, registers, stack + local, shared, len(instructions), _accesses(instructions))


def _tool(name: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def _accesses(instructions: list[str]) -> str:
    counts: Counter[tuple[str, str]] = Counter()
    for instruction in instructions:
        kind, *modifiers = instruction.split(".")
        if kind in ("LDG", "STG"):
            width = next((part for part in modifiers if part.lstrip("US") in ("8", "16", "64", "128")), "32")
            counts["read" if kind == "LDG" else "write", width.lstrip("US")] += 1
    parts = []
    for kind in ("read", "write"):
        widths = sorted(((int(width), n) for (k, width), n in counts.items() if k == kind), reverse=True)
        parts.append(f"{kind} " + " + ".join(f"{n}×{width}" for width, n in widths) if widths else "")
    return ", ".join(part for part in parts if part)


def rows() -> list[Row]:
    """Every case of every family for every target, in order."""
    jobs = [
        (family, case, capability)
        for family in families()
        for case in importlib.import_module(f"genmod.kernels.{family}").COMPILE_CASES
        for capability in TARGETS
    ]
    # Spawned, since a process that has threads (torch's) must not be forked.
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        return [row for found in pool.map(compile_case, *zip(*jobs, strict=True)) for row in found]


def cuda_rows() -> list[Row]:
    """The same of the CUDA C++ kernels; none where there is no nvcc or no source checkout."""
    from genmod.testing import compile_cuda

    return compile_cuda.rows()


def markdown(table: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| kernel | target | registers | spilled bytes | shared bytes | instructions | global memory, bits |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in table)]) + "\n"


_DOCUMENT = """# Compiled kernels

What every GPU kernel uses when compiled for each target; no GPU is needed to know. Registers and spilled bytes (stack
and local memory) are per thread, shared memory per block; the last column counts the instructions that read and write
global memory, by width. Made by `python -m genmod.testing.compile_only --markdown docs/compiled.md`, with triton
{triton}.

{tables}"""


def main() -> None:
    import triton

    parser = argparse.ArgumentParser(description="Compile every GPU kernel without a GPU and show what it uses.")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables to FILE")
    options = parser.parse_args()
    found = {"Triton": rows(), "CUDA C++": cuda_rows()}
    tables = "\n".join(f"## {name}\n\n{markdown(table)}" for name, table in found.items() if table)
    print(tables)
    if options.markdown:
        options.markdown.write_text(_DOCUMENT.format(triton=triton.__version__, tables=tables), encoding="utf-8")


if __name__ == "__main__":
    main()
