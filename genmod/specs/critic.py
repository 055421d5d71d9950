"""Specs of the family `critic`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import ops
from genmod.registry import BadCall, OpSpec, Sample, Workload, register


def eager_leaky_relu(x: Tensor, negative_slope: float = 0.2) -> Tensor:
    """As people write it."""
    return F.leaky_relu(x, negative_slope)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def t(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(device, dtype)

    last = torch.channels_last
    yield Sample("matrix", (t(6, 5),))
    yield Sample("slope", (t(6, 5), 0.01))
    yield Sample("ReLU", (t(6, 5), 0.0))
    yield Sample("slope above one", (t(4, 3), 1.5))
    yield Sample("negative slope below zero", (t(4, 3), -0.3))
    yield Sample("vector", (t(7),))
    yield Sample("one element", (t(1, 1),))
    yield Sample("empty batch", (t(0, 5),))
    yield Sample("several chunks", (t(5, 509),))
    yield Sample("rank 4", (t(2, 3, 4, 5),))
    yield Sample("rank 5", (t(2, 3, 2, 3, 2),))
    yield Sample("channels_last", (t(2, 3, 4, 5).contiguous(memory_format=last),))
    yield Sample("half of the channels, channels_last", (t(2, 6, 4, 5).contiguous(memory_format=last)[:, :3],))
    yield Sample("channels_last_3d", (t(2, 3, 2, 3, 2).contiguous(memory_format=torch.channels_last_3d),))
    yield Sample("slice with offset", (t(9, 8)[2:7, 1:6],))
    yield Sample("every other column", (t(4, 12)[:, ::2],))
    yield Sample("permuted", (t(5, 6).t(),))
    yield Sample("expanded", (t(1, 5).expand(6, 5),))


def _bad_calls() -> Iterator[BadCall]:
    op: Any = ops.critic_leaky_relu
    x = torch.zeros(2, 3)
    yield BadCall("not a tensor", lambda: op([1.0]), TypeError, ("x", "list", "tensor"))
    yield BadCall("integers", lambda: op(x.int()), TypeError, ("x", "int32", "float32"))
    yield BadCall("no dimension", lambda: op(torch.zeros(())), ValueError, ("x", "0-d"))
    yield BadCall("sparse", lambda: op(x.to_sparse()), TypeError, ("x", "sparse", "dense"))
    yield BadCall("slope in words", lambda: op(x, "0.2"), TypeError, ("negative_slope", "str", "number"))
    yield BadCall("slope NaN", lambda: op(x, float("nan")), ValueError, ("negative_slope", "nan", "finite"))


def _workload(name: str, *shape: int) -> Workload:
    return Workload(name, lambda device, dtype: Sample(name, (torch.randn(shape, device=device).to(dtype),)))


def _bytes(sample: Sample, backward: bool) -> int:
    x = sample.args[0]
    return x.numel() * (2 * x.element_size() + 1)


register(
    OpSpec(
        name="critic_leaky_relu",
        family="critic",
        summary="leaky ReLU that keeps a byte per element, and whose second derivative is None instead of zeros",
        public=ops.critic_leaky_relu,
        eager=eager_leaky_relu,
        gradient_order=2,
        dispatcher_ops=("leaky_relu_mask", "leaky_relu_apply"),
        differentiable=(0,),
        samples=_samples,
        bad_calls=_bad_calls,
        workloads=(
            _workload("DCGAN-64 critic, first layer [32, 64, 32, 32]", 32, 64, 32, 32),
            _workload("R3GAN critic at 64 [16, 256, 64, 64]", 16, 256, 64, 64),
            _workload("small [64, 128]", 64, 128),
        ),
        gpu_workloads=(_workload("beyond the cache [16, 256, 128, 128]", 16, 256, 128, 128),),
        bytes_moved=_bytes,
        flops=lambda sample, backward: sample.args[0].numel(),
        modules=("CriticLeakyReLU", "CriticReLU"),
        kept_bytes=lambda sample: sample.args[0].numel() + 64,
    )
)
