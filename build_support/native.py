"""Compiles csrc/ into one shared library, with plain compiler commands.

Why not torch.utils.cpp_extension: it cannot compile one source several times with different flags, its CUDA half
refuses a CPU-only torch, and it would have to import torch, which a metadata query should not wait for. LibTorch's
stable ABI needs nothing but headers and libtorch_cpu, and both are found from torch's folder.

Environment: GENMOD_CUDA_ARCHS (default "80;90a;100"), GENMOD_NVCC, CUDA_HOME, CXX, CXXFLAGS, LDFLAGS, MAX_JOBS.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MIN_TORCH = (2, 10)  # TORCH_TARGET_VERSION below; 2.9 lacks half of the stable ABI that csrc/ uses
DEFAULT_CUDA_ARCHS = ("80", "90a", "100")  # each also serves the later minor versions, except 90a, which is 9.0 alone

HOST_FLAGS = ("-std=c++17", "-g0", "-fPIC", "-fvisibility=hidden")
REGISTRATION_FLAGS = ("-O2", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030A0000")
# No -ffast-math: NaN and infinity must pass through. errno and floating-point traps are never looked at.
KERNEL_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c", "-mprefer-vector-width=512")
X86_64_SETS: dict[str, tuple[str, ...]] = {"baseline": (), "avx2": AVX2, "avx512": AVX512}


class BuildError(Exception):
    """A compiler or linker failed; the message says which step, and what the tool said."""


@dataclass(frozen=True)
class Torch:
    root: Path
    version: str

    @classmethod
    def find(cls) -> Torch | None:
        """The torch that this interpreter would import, found without importing it."""
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.origin is None:
            return None
        root = Path(spec.origin).parent
        found = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", (root / "version.py").read_text())
        return cls(root, found.group(1) if found else "0.0")

    @property
    def old(self) -> bool:
        numbers = re.findall(r"\d+", self.version)
        return tuple(map(int, numbers[:2])) < MIN_TORCH


def find_compiler() -> tuple[str, ...] | None:
    """$CXX, else the compiler that Python was built with, else the usual names; None when none is installed."""
    for name in (os.environ.get("CXX"), sysconfig.get_config_var("CXX"), "c++", "g++", "clang++"):
        words = tuple(shlex.split(name or ""))
        if words and shutil.which(words[0]):
            return words
    return None


@dataclass(frozen=True)
class Cuda:
    nvcc: str
    root: Path

    @classmethod
    def find(cls) -> Cuda | None:
        home = os.environ.get("CUDA_HOME")
        in_home = shutil.which("nvcc", path=f"{home}/bin") if home else None
        nvcc = os.environ.get("GENMOD_NVCC") or in_home or shutil.which("nvcc")
        if not nvcc:
            return None
        # nvcc may be a wrapper script somewhere else: the real one says where its toolkit is.
        try:
            dry = subprocess.run([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True)
        except OSError:
            return None
        top = re.search(r"^#\$ TOP=(.+)$", dry.stderr, re.MULTILINE)
        return cls(nvcc, Path(top.group(1).strip()).resolve()) if top else None

    def archs(self) -> tuple[str, ...]:
        """The targets that were asked for, or those of the default ones that this nvcc knows."""
        if asked := os.environ.get("GENMOD_CUDA_ARCHS"):
            return tuple(asked.replace(",", ";").strip(";").split(";"))
        known = subprocess.run([self.nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
        return tuple(a for a in DEFAULT_CUDA_ARCHS if f"compute_{a.rstrip('a')}" in known)

    def flags(self) -> list[str]:
        archs = self.archs()
        if not archs:
            raise BuildError(f"{self.nvcc} knows none of the GPU architectures {', '.join(DEFAULT_CUDA_ARCHS)}")
        machine_code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
        for_later_gpus = f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"
        return ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", *machine_code, for_later_gpus]

    def folders(self, *names: str) -> list[Path]:
        """Those of the toolkit's folders that exist: NVIDIA's installer and conda lay it out differently."""
        target = self.root / "targets" / f"{platform.machine()}-linux"
        return [root / name for root in (self.root, target) for name in names if (root / name).is_dir()]

    def link_flags(self) -> list[str]:
        return [*(f"-L{f}" for f in self.folders("lib64", "lib")), "-lcudart_static", "-lrt", "-lpthread", "-ldl"]


@dataclass(frozen=True)
class Unit:
    """One compiler call: a source, and what is special about this way of compiling it."""

    source: Path
    variant: str  # tells apart the objects of one source
    command: tuple[str, ...]  # without the source and the output


@dataclass(frozen=True)
class Builder:
    root: Path  # the project; commands run here and name their sources from here, so that no object holds this path
    objects: Path  # kept between builds: an object is made again only when something that goes into it has changed
    torch: Torch
    compiler: tuple[str, ...]
    cuda: Cuda | None
    extra: tuple[str, ...] = ()  # flags that come last, of compiler and linker alike

    @property
    def csrc(self) -> Path:
        return self.root / "csrc"

    def build(self, library: Path) -> None:
        """Compiles what csrc/ holds for this machine and links it into `library`; raises BuildError."""
        self.objects.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(jobs()) as pool:
            pending = [pool.submit(self.compile, unit) for unit in self.units()]
            try:
                objects = [p.result() for p in pending]
            except BuildError:
                pool.shutdown(cancel_futures=True)
                raise
        library.parent.mkdir(parents=True, exist_ok=True)
        link = [*self.compiler, *map(str, objects), "-o", str(library.absolute()), *self.link_flags(), *self.extra]
        run(link, f"linking {library.name}", self.root)

    def units(self) -> list[Unit]:
        units = []
        if self.cuda:  # first, as these take longest
            nvcc = (self.cuda.nvcc, *self.cuda.flags(), "-Icsrc")
            units += [Unit(source, "cuda", nvcc) for source in sorted((self.csrc / "cuda").glob("*.cu"))]
        kernel_sets = {
            name: (*self.host(), *KERNEL_FLAGS, *flags, f"-DGENMOD_ISA={name}", *self.extra)
            for name, flags in instruction_sets().items()
        }
        for source in sorted((self.csrc / "cpu").glob("*.cpp")):
            # A file that does not name the set is the same in all of them, and would define its symbols twice.
            per_set = kernel_sets if "GENMOD_ISA" in source.read_text() else {"baseline": kernel_sets["baseline"]}
            units += [Unit(source, name, command) for name, command in per_set.items()]
        for source in sorted((self.csrc / "ops").glob("*.cpp")):
            if self.cuda or not source.stem.endswith("_cuda"):
                units.append(Unit(source, "host", self.registration()))
        return units

    def host(self) -> tuple[str, ...]:
        return (*self.compiler, *HOST_FLAGS, "-Icsrc", *shlex.split(os.environ.get("CXXFLAGS", "")))

    def registration(self) -> tuple[str, ...]:
        headers = self.torch.root / "include"
        # The map keeps this machine's folders out of the library, where torch's checks would put their __FILE__.
        includes = (f"-isystem{headers}", f"-fmacro-prefix-map={headers}/=", f"-isystem{sysconfig.get_path('include')}")
        cuda = ("-DGENMOD_WITH_CUDA", *(f"-I{f}" for f in self.cuda.folders("include"))) if self.cuda else ()
        return (*self.host(), *REGISTRATION_FLAGS, *cuda, *includes, *self.extra)

    def link_flags(self) -> list[str]:
        extra = shlex.split(os.environ.get("LDFLAGS", ""))
        if sys.platform == "darwin":
            return ["-bundle", "-undefined", "dynamic_lookup", *extra]
        # No rpath: libtorch_cpu is in the process before this library, and is found there by name, whichever version.
        torch = [f"-L{self.torch.root / 'lib'}", "-Wl,--as-needed", "-ltorch_cpu"]
        cuda = self.cuda.link_flags() if self.cuda else []
        return ["-shared", "-pthread", "-Wl,--exclude-libs,ALL", *torch, *cuda, *extra]

    def compile(self, unit: Unit) -> Path:
        stem = f"{unit.source.stem}.{unit.variant}"
        made = self.objects / f"{stem}.{self.fingerprint(unit)}.o"
        if not made.exists():
            for stale in self.objects.glob(f"{stem}.*.o"):
                stale.unlink()
            start = time.perf_counter()
            partial = made.with_suffix(".partial")  # an interrupted compiler must leave nothing that looks finished
            source = str(unit.source.relative_to(self.root))
            run([*unit.command, "-c", source, "-o", str(partial)], f"compiling {source} ({unit.variant})", self.root)
            partial.rename(made)
            seconds = time.perf_counter() - start
            print(f"genmod: compiled {source} ({unit.variant}) in {seconds:.1f} s", flush=True)
        return made

    def fingerprint(self, unit: Unit) -> str:
        """A hash of all that goes into an object: source, headers, command, and the versions of compiler and torch."""
        texts = [p.read_text() for p in self.with_headers(unit.source)]
        parts = [*texts, *unit.command, version_of(unit.command[0]), self.torch.version]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def with_headers(self, source: Path) -> list[Path]:
        """A source and every header of ours that it includes, however deep, in a fixed order."""
        found: list[Path] = []
        pending = [source]
        while pending:
            file = pending.pop()
            if file in found:
                continue
            found.append(file)
            for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', file.read_text(), re.MULTILINE):
                places = (file.parent / name, self.csrc / name)
                pending += [p.resolve() for p in places if p.is_file()][:1]
        return found


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """Each set that kernels are compiled for on this machine, with its compiler flags."""
    return X86_64_SETS if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": ()}


def jobs() -> int:
    """How many compilers run at a time: two, as a small machine's memory allows, or $MAX_JOBS."""
    return max(1, int(os.environ.get("MAX_JOBS") or min(2, os.cpu_count() or 1)))


@functools.cache
def version_of(tool: str) -> str:
    return subprocess.run([tool, "--version"], capture_output=True, text=True).stdout


def run(command: Sequence[str], step: str, folder: Path) -> None:
    both = subprocess.STDOUT
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=both, text=True, errors="replace")
    if done.returncode:
        lines = done.stdout.splitlines()
        telling = [line for line in lines if re.search(r"\berror\b|undefined reference", line)][:6] or lines[-12:]
        raise BuildError("\n    ".join([f"{step} failed (exit code {done.returncode})", *telling]))
    if done.stdout.strip():
        print(done.stdout.strip(), flush=True)
