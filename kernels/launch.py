"""One place through which every Triton kernel is launched, so that a launch can also be looked at without a GPU, or be
done again (kernels/replay.py)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor


class Launch(NamedTuple):
    """What a launcher asked for: enough to compile exactly the kernel that a GPU would run."""

    kernel: Any
    programs: int
    num_warps: int
    arguments: dict[str, Any]


_recorded: list[Launch] | None = None
_listener = threading.local()  # what other threads launch meanwhile is not for it


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Within it launches are collected and not run; so the launchers also work on meta tensors."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def is_recording() -> bool:
    """Whether launches are collected instead of run."""
    return _recorded is not None


@contextmanager
def telling(listener: Callable[[Launch, Any], None]) -> Iterator[None]:
    """Within it launches of this thread are run and told of, with the compiled kernel that Triton chose."""
    before, _listener.call = getattr(_listener, "call", None), listener
    try:
        yield
    finally:
        _listener.call = before


def launch(kernel: Any, programs: int, num_warps: int, device_of: Tensor, arguments: dict[str, Any]) -> None:
    """Run `programs` programs of `kernel` on the device of a tensor. One grid axis only: the others stop at 65535."""
    if programs == 0:
        return
    asked = Launch(kernel, programs, num_warps, arguments)
    if _recorded is not None:
        _recorded.append(asked)
        return
    with on(device_of.device):
        compiled = kernel[(programs,)](**arguments, num_warps=num_warps)
    if (tell := getattr(_listener, "call", None)) is not None:
        tell(asked, compiled)


_here = nullcontext()


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a device the current one, which it nearly always is."""
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return _here
    return torch.cuda.device(device)


def current_stream() -> int:
    """That of the current device, as Triton takes it."""
    driver = triton.runtime.driver.active
    return driver.get_current_stream(driver.get_current_device())
