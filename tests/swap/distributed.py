"""One process that is a whole process group, and what wraps a model for several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from torch import nn


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _fsdp1(model: nn.Module) -> nn.Module:
    """Each submodule that has parameters of its own in a wrapper, and the model in one more."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import always_wrap_policy

    return FullyShardedDataParallel(model, auto_wrap_policy=always_wrap_policy, use_orig_params=True, device_id="cpu")


def _fsdp1_flat(model: nn.Module) -> nn.Module:
    """The whole model in one wrapper, its parameters in one flat one."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, device_id="cpu")


def _fsdp2(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": nn.parallel.DistributedDataParallel,
    "fsdp1": _fsdp1,
    "fsdp1, flat": _fsdp1_flat,
    "fsdp2": _fsdp2,
}
