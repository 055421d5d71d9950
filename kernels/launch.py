"""One place through which every Triton kernel is launched, so that a launch can also be looked at without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """What a launcher asked for: enough to compile exactly the kernel that a GPU would run."""

    kernel: Any
    programs: int
    num_warps: int
    arguments: dict[str, Any]


_recorded: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Within it launches are collected and not run; so the launchers also work on meta tensors."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def launch(kernel: Any, programs: int, num_warps: int, device_of: Tensor, arguments: dict[str, Any]) -> None:
    """Run `programs` programs of `kernel` on the device of a tensor. One grid axis only: the others stop at 65535."""
    if programs == 0:
        return
    if _recorded is not None:
        _recorded.append(Launch(kernel, programs, num_warps, arguments))
        return
    with torch.cuda.device_of(device_of):
        kernel[(programs,)](**arguments, num_warps=num_warps)
