"""Every launcher done again, kernels and all: in Triton's interpreter, which is handed addresses as a GPU would be."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib
import itertools
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

import genmod
import genmod.kernels
from genmod import backends
from genmod.kernels import launch, replay
from genmod.specs import specs
from genmod.testing import battery

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there the battery replays compiled kernels")
CPU = torch.device("cpu")


class Interpreted:
    """Stands for a compiled kernel: makes tensors of the addresses that it is started with, and interprets."""

    def __init__(self, asked: launch.Launch) -> None:
        self.asked = asked
        self.tensors = {
            name: (t.dtype, t.untyped_storage().nbytes() - t.storage_offset() * t.element_size())
            for name, t in asked.arguments.items()
            if isinstance(t, torch.Tensor)
        }

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def start(*arguments: Any, stream: int) -> None:
            named = dict(zip(self.asked.kernel.arg_names, arguments, strict=True))
            for name, (dtype, size) in self.tensors.items():
                named[name] = at_address(named[name], size, dtype)
            self.asked.kernel[(self.asked.programs,)](**named, num_warps=self.asked.num_warps)

        return start


def at_address(address: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    if not address or not size:
        return torch.empty(0, dtype=dtype)
    memory = (ctypes.c_char * size).from_address(address)
    return torch.frombuffer(memory, dtype=torch.uint8)[: size // dtype.itemsize * dtype.itemsize].view(dtype)


def interpret(kernel: Any, programs: int, num_warps: int, device_of: torch.Tensor, arguments: dict[str, Any]) -> None:
    if not programs:
        return
    with _disable_current_modes():  # the interpreter copies by operators of its own
        kernel[(programs,)](**arguments, num_warps=num_warps)
    if (tell := getattr(launch._listener, "call", None)) is not None:
        asked = launch.Launch(kernel, programs, num_warps, arguments)
        tell(asked, Interpreted(asked))


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The backend "triton" with a memory, which it otherwise has on a GPU only."""
    usual = launch.launch
    for name in (module.name for module in pkgutil.iter_modules(genmod.kernels.__path__)):
        module = importlib.import_module(f"genmod.kernels.{name}")
        if getattr(module, "launch", None) is usual:
            monkeypatch.setattr(module, "launch", interpret)
    monkeypatch.setattr(launch, "current_stream", lambda: 0)

    @functools.cache
    def launcher(family: str, op: str) -> Any:
        return replay.remembering(getattr(importlib.import_module(f"genmod.kernels.{family}"), op))

    monkeypatch.setattr(backends, "_triton_launcher", launcher)
    with genmod.backend("triton"):
        yield


@pytest.mark.parametrize("spec", specs().values(), ids=specs())
def test_the_second_call_is_as_right_as_the_first(spec, replayed):
    few = dataclasses.replace(spec, samples=lambda *where: itertools.islice(spec.samples(*where), 1, None, 5))
    for _ in range(2):
        battery.accuracy(few, CPU, torch.float32)


@pytest.mark.parametrize("op", ["upsample_conv2d", "group_norm_act", "gaussian_kl", "critic_loss", "mse"])
def test_some_gradients_are_as_right_as_all(op, replayed):
    spec = specs()[op]
    few = dataclasses.replace(spec, samples=lambda *where: itertools.islice(spec.samples(*where), 2, None, 9))
    battery.every_subset_of_gradients(few, CPU)
