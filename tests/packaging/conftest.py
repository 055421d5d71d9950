"""Builds the distributions once, from a copy of the project, and makes throw-away environments to install them into.

Nothing is downloaded: a fresh environment reaches this one's torch through a .pth file, and no build is isolated.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCES = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", "build", "dist", "out", "*.egg-info", "_C.*", "_build.json", ".*_cache"
)
# One architecture is enough to see that the CUDA half builds and loads; three would take minutes.
QUICK_CUDA = {"GENMOD_CUDA_ARCHS": "80"}


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without what steers genmod, Python's path or Triton, and with `changes`."""
    steering = ("GENMOD_", "PYTHON", "TRITON_", "VIRTUAL_ENV")
    return {k: v for k, v in os.environ.items() if not k.startswith(steering)} | changes


def run(*command: str | Path, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    env = clean_environment(**changes)
    return subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=900)


@dataclass(frozen=True)
class Environment:
    """A virtual environment that sees this one's packages after its own."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Environment:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        env = cls(folder)
        (env.site_packages / "torch_of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
        return env

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        major, minor = sys.version_info[:2]
        return self.folder / "lib" / f"python{major}.{minor}" / "site-packages"

    @property
    def package(self) -> Path:
        return self.site_packages / "genmod"

    def pip(self, *args: str | Path, cwd: Path | None = None, **changes: str) -> subprocess.CompletedProcess[str]:
        pip = (sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check")
        return run(*pip, *args, cwd=cwd or self.folder, **changes)

    def install(self, what: str | Path, *flags: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """Installs one thing and nothing that it depends on, whatever the outer environment has of the same name."""
        done = self.pip("install", "--no-index", "--no-deps", "--ignore-installed", *flags, what, **changes)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def run(self, code: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """Runs Python code in a folder that has nothing of the project in it."""
        done = run(self.python, "-c", code, cwd=self.folder, **changes)
        assert done.returncode == 0, done.stderr
        return done

    def doctor(self, **changes: str) -> dict:
        done = run(self.folder / "bin" / "genmod", "doctor", "--json", cwd=self.folder, **changes)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@dataclass(frozen=True)
class Project:
    """A copy of the project's sources that may be built in."""

    folder: Path

    @property
    def objects(self) -> Path:
        """Where a build keeps its object files, to be taken again by a later one."""
        return self.folder / "build" / "native"

    def build(self, kind: str, *python_flags: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """Calls the build backend as pip would, for "wheel" or "sdist"; the result is in `dist`."""
        code = f"import setuptools.build_meta as backend; backend.build_{kind}('dist')"
        (self.folder / "dist").mkdir(exist_ok=True)
        return run(sys.executable, *python_flags, "-c", code, cwd=self.folder, **changes)

    def wheel(self) -> Path:
        """The wheel that was built last."""
        return max((self.folder / "dist").glob("*.whl"), key=lambda p: p.stat().st_mtime_ns)

    def copy(self, folder: Path, objects: bool = False) -> Project:
        """The sources again in `folder`, with or without the object files."""
        shutil.copytree(self.folder, folder, ignore=NOT_SOURCES)
        copied = Project(folder)
        if objects and self.objects.is_dir():
            shutil.copytree(self.objects, copied.objects)
        return copied


def build_wheel(project: Project, **changes: str) -> Path:
    done = project.build("wheel", **changes)
    assert done.returncode == 0, done.stdout + done.stderr
    return project.wheel()


def read_record(wheel: Path) -> dict:
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read("genmod/_build.json"))


@pytest.fixture(scope="session")
def record_of() -> Callable[[Path], dict]:
    """A function: what the build wrote about itself into a wheel."""
    return read_record


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = Project(ROOT).copy(tmp_path_factory.mktemp("checkout") / "genmod")
    done = project.build("sdist")
    assert done.returncode == 0, done.stdout + done.stderr
    return next((project.folder / "dist").glob("*.tar.gz"))


@pytest.fixture(scope="session")
def project(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The sources as they come out of the sdist, with the objects that the checkout's own build left, to save time."""
    folder = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(sdist, folder)
    project = Project(next(folder.iterdir()))
    if Project(ROOT).objects.is_dir():
        shutil.copytree(Project(ROOT).objects, project.objects)
    return project


@pytest.fixture(scope="session")
def native_wheel(project: Project) -> Path:
    wheel = build_wheel(project, **QUICK_CUDA)
    obstacle = read_record(wheel)["why_not_native"]
    if obstacle.startswith("no C++ compiler"):
        pytest.skip(obstacle)
    assert not obstacle
    return wheel


@pytest.fixture(scope="session")
def pure_wheel(project: Project) -> Path:
    return build_wheel(project, GENMOD_NATIVE="0")


@pytest.fixture(scope="session")
def native_env(native_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    env = Environment.create(tmp_path_factory.mktemp("native") / "env")
    env.install(native_wheel)
    return env


@pytest.fixture(scope="session")
def native_report(native_env: Environment) -> dict:
    return native_env.doctor()


@pytest.fixture(scope="session")
def pure_env(pure_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    env = Environment.create(tmp_path_factory.mktemp("pure") / "env")
    env.install(pure_wheel)
    return env


@pytest.fixture
def fresh_env(tmp_path: Path) -> Environment:
    return Environment.create(tmp_path / "env")
