"""Compile every CUDA C++ kernel for GPUs that are not here, and read what it would use.

    python -m genmod.testing.compile_cuda

Each csrc/cuda/*.cu of a source checkout is compiled to a binary for each target with nvcc, which needs neither a GPU
nor PyTorch; registers, stack and shared memory are what the assembler reports. Instructions and memory accesses are
read from the disassembly, if nvdisasm is there: Triton brings one.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from genmod.testing.compile_only import Row, _accesses, markdown

TARGETS = ("sm_80", "sm_90a", "sm_100")
CSRC = Path(__file__).resolve().parents[2] / "csrc"

_REPORT = re.compile(
    r"Compiling entry function '(?P<symbol>\S+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)")
_SHORT_TYPES = {"__nv_bfloat16": "bf16", "__half": "f16", "double": "f64", "float": "f32"}


def missing() -> str:
    """Why nothing can be compiled here, or an empty string."""
    if not any((CSRC / "cuda").glob("*.cu")):
        return f"no CUDA sources in {CSRC / 'cuda'}: this is not a source checkout"
    return "" if _nvcc() else "no nvcc was found (tried $GENMOD_NVCC, $CUDA_HOME and the PATH)"


def rows() -> list[Row]:
    """Every kernel of every file for every target, in order; none if :func:`missing` gives a reason.

    Raises:
        RuntimeError: if a file does not compile, with the compiler's words.
    """
    if missing():
        return []
    jobs = [(source, target) for source in sorted((CSRC / "cuda").glob("*.cu")) for target in TARGETS]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return [row for found in pool.map(lambda job: compile_file(*job), jobs) for row in found]


def compile_file(source: Path, target: str) -> list[Row]:
    """What each kernel of one file uses on one target."""
    with tempfile.TemporaryDirectory() as folder:
        architecture = f"-gencode=arch={target.replace('sm', 'compute')},code={target}"
        # To an object, not only to a binary for the GPU: what nvcc makes of the host's half can fail to compile too.
        flags = ("-std=c++17", "-O3", "-Xptxas", "-v", architecture, "--keep", "--keep-dir", folder, "-c")
        done = subprocess.run(
            [_nvcc() or "nvcc", *flags, "-o", f"{folder}/kernels.o", source], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"nvcc does not compile {source.name} for {target}:\n{done.stdout}{done.stderr}")
        code = _disassemble(next(Path(folder).glob("*.cubin")))
    found = list(_REPORT.finditer(done.stdout + done.stderr))
    table = []
    for report, name in zip(found, _short_names([report["symbol"] for report in found])):
        shared = re.search(r"(\d+) bytes smem", report["rest"])
        spilled = max(int(report[part]) for part in ("stack", "stores", "loads"))
        instructions = _INSTRUCTION.findall(code.get(report["symbol"], ""))
        used = (int(report["registers"]), spilled, int(shared[1]) if shared else 0)
        table.append(Row(f"{source.stem}: {name}", target, *used, len(instructions), _accesses(instructions)))
    return sorted(table)


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return os.environ.get("GENMOD_NVCC") or (home and shutil.which("nvcc", path=f"{home}/bin")) or shutil.which("nvcc")


def _disassemble(cubin: Path) -> dict[str, str]:
    """The machine code of each kernel, by symbol; empty without nvdisasm."""
    triton = importlib.util.find_spec("triton")
    bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" if triton and triton.origin else Path()
    tool = shutil.which("nvdisasm") or shutil.which("nvdisasm", path=str(bundled))
    if tool is None:
        return {}
    listing = subprocess.run([tool, "-c", str(cubin)], capture_output=True, text=True).stdout
    parts = re.split(r"^//-+ \.text\.(\S+) -+", listing, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def _short_names(symbols: list[str]) -> list[str]:
    """`_ZN6genmod...forwardIfLb1E...` as `forward<f32, true, ...>`; the symbols themselves if c++filt is not there."""
    demangler = shutil.which("cu++filt") or shutil.which("c++filt")
    if demangler is None or not symbols:
        return symbols
    names = subprocess.run([demangler, *symbols], capture_output=True, text=True).stdout.splitlines()
    return [_shorten(name) for name in names]


def _shorten(signature: str) -> str:
    """The name and template arguments in `void space::(anonymous namespace)::name<arguments>(parameters)`."""
    bare = re.sub(r"(?:\w+|\(anonymous namespace\)|<unnamed>)::", "", signature)
    found = re.match(r"(?:void )?(\w+(?:<[^()]*>)?)", bare)
    return re.sub(r"\w+", lambda word: _SHORT_TYPES.get(word[0], word[0]), found[1] if found else bare)


def main() -> None:
    reason = missing()
    print(f"nothing compiled: {reason}" if reason else markdown(rows()))


if __name__ == "__main__":
    main()
