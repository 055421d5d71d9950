"""What genmod costs around its kernels: the import, and the Python between a call and its kernel."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from genmod import measure
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
    """Notes the calls of genmod's dispatcher ops, and of the convolutions in ops, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        product = func.__name__.startswith(("mm.", "addmm."))  # a convolution, too: see genmod.ops._convolution
        if func.namespace == "genmod" or "convolution" in func.__name__ or product:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def small_sample(spec: OpSpec, device: torch.device) -> Sample | None:
    """The smallest workload that takes kernels, or else the first of the battery's samples that does."""
    made = [w.make(device, torch.float32) for w in spec.workloads]
    made.sort(key=lambda s: sum(t.numel() for t in s.tensors()))
    others = [s for s in battery.samples(spec, device, torch.float32) if s.tensors() and s.tensors()[0].numel()]
    return next((s for s in (*made, *others) if any(f.namespace == "genmod" for f, _, _ in _kernels(spec, s))), None)


def _kernels(spec: OpSpec, sample: Sample) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    with torch.no_grad(), _Recorder() as recorder:
        spec.public(*sample.args, **sample.kwargs)
    return recorder.calls


def per_call(spec: OpSpec, device: torch.device, rounds: int = 15) -> dict[str, Any] | None:
    """Median seconds of a call of the public op without and with gradients to come, and of its kernels called directly
    with the same arguments, below autograd; None for an op that has no kernel on this device."""
    sample = small_sample(spec, device)
    if sample is None:
        return None
    kernels = _kernels(spec, sample)
    call, _ = battery.with_grad(spec, sample)
    below_autograd = torch._C._AutoDispatchBelowAutograd

    def direct() -> None:
        with below_autograd():
            for function, args, kwargs in kernels:
                function(*args, **kwargs)

    def without_gradients() -> None:
        with torch.no_grad():
            spec.public(*sample.args, **sample.kwargs)

    calls = {
        "kernel": direct,
        "op": without_gradients,
        "op in training": lambda: spec.public(*call.args, **call.kwargs),
    }
    times = measure.interleaved(calls, device, rounds=rounds, budget=1.0)
    return {
        "op": spec.name,
        "shape": list(max(sample.tensors(), key=torch.Tensor.numel).shape),
        "kernels": len(kernels),
        "median_seconds": {name: statistics.median(t) for name, t in times.items()},
    }
