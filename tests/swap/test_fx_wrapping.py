"""What people do to models whose forward was rewritten: autocast, compile, export, checkpoint, share, save, wrap."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import genmod
from genmod.swap.classes import is_swapped

from .common import close
from .distributed import WRAPPERS, one_process  # noqa: F401  (a fixture)


class Block(nn.Module):
    """A pattern of each kind that a forward may hold: norm, doubling, a transposed convolution, a division by 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv3, self.norm3 = nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm1(self.conv1(x)))
        x = self.conv2(F.interpolate(x, scale_factor=2, mode="nearest"))
        return (torch.relu(self.norm3(self.conv3(x))) + 0.5) / 1.0


def pair(training: bool = False) -> tuple[nn.Module, nn.Module]:
    """Accelerated and stock."""
    torch.manual_seed(0)
    stock = Block().train(training)
    ours = copy.deepcopy(stock)
    report = genmod.accelerate(ours)
    names = {"group_norm_act", "upsample_conv", "conv_transpose_bn_act", "divide_by_one"}
    assert {swap.pattern for swap in report} == names, str(report)
    return ours, stock


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("training", [False, True])
def test_autocast(training: bool):
    ours, stock = pair(training)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = ours(images()), stock(images())
    close(found, expected, 3e-2)
    found.float().square().mean().backward()
    expected.float().square().mean().backward()
    for (name, p), q in zip(ours.named_parameters(), stock.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and p.grad.dtype == q.grad.dtype
        largest = max(other.grad.norm() for other in stock.parameters() if other.grad is not None)
        assert (p.grad - q.grad).norm() <= 5e-2 * q.grad.norm() + 1e-2 * largest, name


def test_channels_last_and_inference_mode():
    ours, stock = (m.to(memory_format=torch.channels_last) for m in pair())  # type: ignore[call-overload]
    x = images().contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        found, expected = ours(x), stock(x)
    assert found.is_contiguous(memory_format=torch.channels_last) and found.is_inference()
    close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_compile_has_no_graph_breaks(training: bool):
    ours, stock = pair(training)
    torch._dynamo.reset()
    found = torch.compile(ours, fullgraph=True, backend="aot_eager")(images())
    close(found, stock(images()))
    found.square().mean().backward()
    stock.zero_grad()
    stock(images()).square().mean().backward()
    close(ours.conv2.weight.grad, stock.conv2.weight.grad, 1e-3)  # type: ignore[arg-type, union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_export(strict: bool):
    ours, stock = pair()
    program = torch.export.export(ours, (images(),), strict=strict)
    targets = {str(node.target) for node in program.graph.nodes}
    assert any(target.startswith("genmod.") for target in targets), targets
    close(program.module()(images()), stock(images()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool):
    ours, stock = pair()
    x = [images().requires_grad_() for _ in range(2)]
    checkpoint(ours, x[0], use_reentrant=reentrant).square().mean().backward()
    stock(x[1]).square().mean().backward()
    close(x[0].grad, x[1].grad, 1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_distributed_wrappers(one_process: None, wrap: str):  # noqa: F811
    ours, stock = pair(training=True)
    wrapped = WRAPPERS[wrap](ours)
    for model in (wrapped, stock):
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        model(images()).square().mean().backward()
        optimiser.step()
    close(wrapped(images()).detach(), stock(images()).detach(), 1e-3)
    genmod.restore(wrapped)
    assert not any(is_swapped(m) for m in wrapped.modules())
    close(wrapped(images()).detach(), stock(images()).detach(), 1e-3)
