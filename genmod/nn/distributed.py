"""Collectives for losses over a batch that is spread over processes.

**The gradient convention.** Every process computes the same loss L of the whole batch, and its backward gives R times
the gradient of L by what that process holds, R being the number of processes: the gradient of the *sum* of the R equal
losses. Averaged over processes, as `DistributedDataParallel` averages the gradients of parameters, that is the gradient
of L; so such a loss and one that is a mean over each process's own samples can be added as they are.

It follows from each collective being differentiated as the linear map over all processes that it is: a sum's
backward is a sum, a gather's backward adds up what every process sends for the rows of this one. Each is its own
backward's backward, so second derivatives are exact too. Every process must take part in every backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = t.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grad, ctx.group), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.rows = group, t.shape[0]
        parts = [torch.empty_like(t, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, t.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # A reduce-scatter would send half as much, and not every backend of torch.distributed has it. Half precision is
        # summed in float32 and rounded once, not once per process.
        wide = grad.float() if grad.dtype in (torch.bfloat16, torch.float16) else grad
        total = _Sum.apply(wide, ctx.group)
        return total.narrow(0, dist.get_rank(ctx.group) * ctx.rows, ctx.rows).to(grad.dtype), None


def sum_over(t: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of every process's `t`, in every process."""
    return _Sum.apply(t, group)


def gather(t: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Every process's rows, in the order of ranks."""
    return _Gather.apply(t, group)


def first_row(name: str, t: Tensor, group: dist.ProcessGroup) -> int:
    """Where this process's rows begin among all.

    Raises:
        ValueError: in every process, if they do not all hold matrices of one shape. On a GPU that is taken on trust:
            to look at the others' shapes, the host would have to wait for the device in every step.
    """
    if t.device.type == "cpu":
        mine = torch.tensor(t.shape, device="cpu")
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(every, mine, group=group)
        shapes = [tuple(shape.tolist()) for shape in every]
        if len(set(shapes)) > 1:
            raise ValueError(f"{name}: got shapes {shapes} in the processes of the group, expected equal ones")
    return dist.get_rank(group) * t.shape[0]
