"""Times one revision of genmod for `--against`: a JSON object a line, questions from stdin, answers to stdout.

Runs under whichever revision lies in the current folder, so it uses nothing but what every revision has: the specs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def prepare(case: dict[str, Any]) -> Callable[[], Any] | None:
    """The call to time; None if this revision has no such op or workload."""
    from genmod.specs import specs

    spec = specs().get(case["op"])
    workload = next((w for w in _workloads(spec) if w.name == case["workload"]), None) if spec else None
    if spec is None or workload is None:
        return None
    torch.manual_seed(0)
    sample = workload.make(torch.device(case["device"]), getattr(torch, case["dtype"]))
    if case["mode"] == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return spec.public(*sample.args, **sample.kwargs)

        return forward
    leaves = [t for i in spec.differentiable if isinstance(t := sample.get(i), torch.Tensor)]
    for leaf in leaves:
        leaf.requires_grad_()

    def outputs() -> tuple[torch.Tensor, ...]:
        made = spec.public(*sample.args, **sample.kwargs)
        return (made,) if isinstance(made, torch.Tensor) else tuple(made)

    incoming = [torch.ones_like(o) if not o.dim() else torch.randn_like(o) for o in outputs()]
    return lambda: torch.autograd.grad(outputs(), leaves, incoming)


def _workloads(spec: Any) -> Any:
    return spec.workloads + getattr(spec, "gpu_workloads", ())  # which older revisions lack


def seconds(call: Callable[[], Any], repeat: int) -> float:
    """Per call, over a stretch of them."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    synchronize()
    return (time.perf_counter() - start) / repeat


def main() -> None:
    """Answer until the questions end."""
    call: Callable[[], Any] | None = None
    for line in sys.stdin:
        question = json.loads(line)
        if "prepare" in question:
            call = prepare(question["prepare"])
            if call is not None:
                seconds(call, 2)
            answer = {"ok": call is not None, "seconds": seconds(call, 2) if call else 0.0}
        else:
            assert call is not None, "asked for a time before there was a call"
            answer = {"seconds": seconds(call, question["time"])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
