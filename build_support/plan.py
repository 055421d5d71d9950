"""Decides what an install will compile, without compiling anything and without importing torch."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from .native import MIN_TORCH, Cuda, Torch, find_compiler, instruction_sets


class Unsatisfiable(SystemExit):
    """The environment demands what cannot be had. An exit, so that pip shows one line instead of a traceback."""


def switch(name: str) -> str:
    """The environment variable `name`, one of "0" (never), "1" (demanded) and "auto" (if possible)."""
    value = os.environ.get(name, "").strip().lower() or "auto"
    if value not in ("0", "1", "auto"):
        raise Unsatisfiable(f"genmod: {name} must be 0, 1 or auto, got {value!r}")
    return value


@dataclass
class Plan:
    """What is going to be compiled and why not the rest. A build that fails corrects it as it goes."""

    native_demanded: bool
    cuda_demanded: bool
    torch: Torch | None
    compiler: tuple[str, ...] | None
    cuda: Cuda | None = None
    why_not_native: str = ""
    why_not_cuda: str = ""

    @classmethod
    def make(cls, csrc: Path) -> Plan:
        native, cuda = switch("GENMOD_NATIVE"), switch("GENMOD_CUDA")
        if native == "0" and cuda == "1":
            raise Unsatisfiable("genmod: GENMOD_CUDA=1 needs the C++ part, which GENMOD_NATIVE=0 forbids")
        plan = cls("1" in (native, cuda), cuda == "1", Torch.find(), find_compiler())
        plan.why_not_native = plan.native_obstacle(native)
        plan.why_not_cuda = plan.why_not_native or plan.cuda_obstacle(cuda, csrc)
        return plan

    def native_obstacle(self, wanted: str) -> str:
        if wanted == "0":
            return "GENMOD_NATIVE=0 was set"
        if sys.platform not in ("linux", "darwin"):
            return f"it is built with GCC or Clang on Linux and macOS, and this is {sys.platform}"
        if self.torch is None:
            return "PyTorch was not importable; if it is installed, use pip install --no-build-isolation"
        if self.torch.old:
            return f"it needs torch >= {'.'.join(map(str, MIN_TORCH))} and found {self.torch.version}"
        if self.compiler is None:
            return "no C++ compiler was found (tried $CXX, c++, g++, clang++)"
        return ""

    def cuda_obstacle(self, wanted: str, csrc: Path) -> str:
        if wanted == "0":
            return "GENMOD_CUDA=0 was set"
        if not any((csrc / "cuda").glob("*.cu")):
            return "there are no CUDA C++ kernels in this version"
        self.cuda = Cuda.find()
        return "" if self.cuda else "no nvcc was found (tried $GENMOD_NVCC, $CUDA_HOME and the PATH)"

    def give_up_cuda(self, why: str) -> None:
        self.cuda, self.why_not_cuda = None, why

    def give_up_native(self, why: str) -> None:
        self.give_up_cuda(why)
        self.why_not_native = why

    def record(self) -> dict[str, object]:
        """What `genmod doctor` will tell about this build."""
        native = not self.why_not_native
        return {
            "native": native,
            "why_not_native": self.why_not_native,
            "instruction_sets": list(instruction_sets()) if native else [],
            "cuda": self.cuda is not None,
            "why_not_cuda": self.why_not_cuda,
            "cuda_archs": list(self.cuda.archs()) if self.cuda else [],
            "torch": self.torch.version if self.torch else "",
            "compiler": " ".join(self.compiler or ()),
        }
