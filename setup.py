"""Builds the compiled part, genmod._C, beside the metadata that pyproject.toml holds.

GENMOD_NATIVE=0 skips it and 1 demands it; GENMOD_CUDA does the same for the CUDA kernels inside it. Unset, each is
built when its compiler is there, and a failure costs speed but never the install: one warning, and the package is pure
Python. What happened is kept in genmod/_build.json, as pip hides what a build prints; `genmod doctor` reads it out.
"""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
from build_support.native import Builder, BuildError  # noqa: E402
from build_support.plan import Plan, Unsatisfiable  # noqa: E402

PLAN = Plan.make(ROOT / "csrc")


def say(text: str) -> None:
    print(f"genmod: {text}", file=sys.stderr, flush=True)


def package_folder(command: build_py | build_ext) -> Path:
    """Where genmod/ is being put together: in the source tree for an editable install, else in the build folder."""
    return ROOT / "genmod" if command.editable_mode else Path(command.build_lib) / "genmod"


def write_record(command: build_py | build_ext) -> None:
    file = package_folder(command) / "_build.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(PLAN.record(), indent=2) + "\n")


class BuildPy(build_py):
    """Starts clean, so that nothing of an earlier build is installed by accident."""

    def run(self) -> None:
        if self.editable_mode:
            for stale in package_folder(self).glob("_C.*"):
                stale.unlink()
        else:
            shutil.rmtree(package_folder(self), ignore_errors=True)
        super().run()
        if PLAN.why_not_native and not PLAN.native_demanded:
            say(f"installing without the C++ part: {PLAN.why_not_native}")
        write_record(self)


class BuildExt(build_ext):
    """Compiles with build_support instead of setuptools' own compiler, and survives a failure unless told not to."""

    def build_extension(self, ext: Extension) -> None:
        try:
            if PLAN.why_not_native:
                raise BuildError(PLAN.why_not_native)
            self.compile_to(Path(self.get_ext_fullpath(ext.name)))
        except BuildError as error:
            if PLAN.native_demanded:
                demand = "the C++ part was demanded (GENMOD_NATIVE or GENMOD_CUDA is 1)"
                raise Unsatisfiable(f"genmod: {demand}, but {error}") from None
            say(f"WARNING: installing without the C++ part; all works, but slower: {error}")
            PLAN.give_up_native(str(error))
            self.distribution.ext_modules = []  # from here on this is a pure-Python install, and its wheel is tagged so
        write_record(self)

    def compile_to(self, library: Path) -> None:
        """With the CUDA kernels if they are planned; without them when they fail and were not demanded."""
        if PLAN.cuda_demanded and PLAN.why_not_cuda:
            raise BuildError(PLAN.why_not_cuda)
        try:
            self.builder().build(library)
        except BuildError as error:
            if PLAN.cuda is None or PLAN.cuda_demanded:
                raise
            say(f"WARNING: building without the CUDA kernels: {error}")
            PLAN.give_up_cuda(str(error))
            self.builder().build(library)

    def builder(self) -> Builder:
        assert PLAN.torch and PLAN.compiler, "a plan without obstacles has both"
        return Builder(ROOT, ROOT / "build" / "native", PLAN.torch, PLAN.compiler, PLAN.cuda)


class BdistWheel(bdist_wheel):
    """Builds first and names the wheel after: a compiler that failed leaves a pure-Python wheel."""

    def run(self) -> None:
        self.run_command("build")
        self.skip_build = True
        if not self.distribution.has_ext_modules():
            self.root_is_pure, self.py_limited_api = True, False
        super().run()


native = PLAN.native_demanded or not PLAN.why_not_native
# A free-threaded Python has no limited API; there the wheel serves that one version.
limited_api = native and not sysconfig.get_config_var("Py_GIL_DISABLED")
extension = Extension("genmod._C", [], py_limited_api=limited_api, optional=not PLAN.native_demanded)

setup(
    packages=[*find_packages(include=["genmod", "genmod.*"]), "genmod.kernels"],
    ext_modules=[extension] if native else [],
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt, "bdist_wheel": BdistWheel},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if limited_api else {},
)
