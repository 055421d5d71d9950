"""What genmod costs around its kernels: the import, and the Python between a call and its kernel."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from genmod import backends, measure
from genmod.registry import OpSpec, Sample
from genmod.testing import battery

_IMPORT = (
    "import time, torch; start = time.perf_counter(); import genmod; "
    "print(time.perf_counter() - start)"
)  # fmt: skip


def import_seconds(runs: int = 10) -> list[float]:
    """Seconds that `import genmod` takes after `import torch`, each in a process of its own; the first of several does
    not count."""
    times = []
    for _ in range(runs):
        done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True)
        times.append(float(done.stdout))
    return times[1:] or times


class _Recorder(TorchDispatchMode):
    """Notes the calls, with their arguments, of what does an op's work: genmod's dispatcher ops, the convolutions in
    ops, and what moves running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        product = func.__name__.startswith(("mm.", "addmm."))  # a convolution, too: see genmod.ops._convolution
        in_place = func.overloadpacket.__name__.endswith("_")
        if func.namespace == "genmod" or "convolution" in func.__name__ or product or in_place:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


#: Elements of a sample above which the kernel takes so long that what is around it drowns in the spread of its times.
_SMALL = 1 << 16


def small_sample(spec: OpSpec, device: torch.device) -> Sample:
    """The smallest workload, or the first of the battery's samples that holds anything where no workload is small."""
    workload = min((w.make(device, torch.float32) for w in spec.workloads), key=_numel)
    if _numel(workload) <= _SMALL:
        return workload
    return next(s for s in battery.samples(spec, device, torch.float32) if s.tensors() and s.tensors()[0].numel())


def _numel(sample: Sample) -> int:
    return sum(t.numel() for t in sample.tensors())


def _kernels(spec: OpSpec, sample: Sample) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    with torch.no_grad(), _Recorder() as recorder:
        spec.public(*sample.args, **sample.kwargs)
    return recorder.calls


def per_call(spec: OpSpec, device: torch.device, rounds: int = 15) -> dict[str, Any] | None:
    """Median seconds of a call of the public op without and with gradients to come, and of its kernels called directly
    with the same arguments, below autograd; None for an op that has no kernel on this device.

    Where stock PyTorch is faster at this size, the backend that larger sizes take is forced: what it costs is asked."""
    sample = small_sample(spec, device)
    home = next(name for name, where in backends.HOME.items() if where == device.type)
    takes = any(f.namespace == "genmod" for f, _, _ in _kernels(spec, sample))
    with contextlib.nullcontext() if takes else backends.backend(home):
        kernels = _kernels(spec, sample)
        if not any(f.namespace == "genmod" for f, _, _ in kernels):
            return None
        call, _ = battery.with_grad(spec, sample)

        def direct() -> None:
            for function, args, kwargs in kernels:
                function(*args, **kwargs)

        calls = {
            "kernel": direct,
            "op": lambda: spec.public(*sample.args, **sample.kwargs),
            "op in training": lambda: spec.public(*call.args, **call.kwargs),
        }
        # Whose mode it is pays for it: a model opens it once, not an op at each call.
        within: dict[str, Any] = {"kernel": torch._C._AutoDispatchBelowADInplaceOrView, "op": torch.no_grad}
        times = measure.interleaved(calls, device, rounds=rounds, budget=1.0, within=within)
    return {
        "op": spec.name,
        "shape": list(max(sample.tensors(), key=torch.Tensor.numel).shape),
        "kernels": len(kernels),
        "forced": not takes,
        "median_seconds": {name: statistics.median(t) for name, t in times.items()},
    }
