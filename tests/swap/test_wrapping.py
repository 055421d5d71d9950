"""What people do to models: copy, save, share, wrap, compile, export, checkpoint."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import genmod
from genmod.swap.classes import is_swapped

from .distributed import WRAPPERS, one_process  # noqa: F401  (a fixture)


def model_and_stock(training: bool = False) -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    stock = nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1),
        nn.GroupNorm(8, 32),
        nn.SiLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(32, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(True),
        nn.Conv2d(16, 8, 1),
        nn.BatchNorm2d(8),
        nn.SiLU(),
    ).train(training)
    ours = copy.deepcopy(stock)
    assert len(genmod.accelerate(ours)) >= 4
    return ours, stock


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)


def close(found: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)


def test_restore_is_bit_equal_and_leaves_nothing():
    ours, stock = model_and_stock()
    ours(images())
    assert genmod.restore(ours) is ours
    assert torch.equal(ours(images()), stock(images()))
    for mine, theirs in zip(ours.modules(), stock.modules(), strict=True):
        assert type(mine) is type(theirs) and set(vars(mine)) == set(vars(theirs))


def test_deepcopy_pickle_and_save_stay_swapped():
    ours, _ = model_and_stock()
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    others = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(buffer, weights_only=False)]
    for other in others:
        assert is_swapped(other) and type(other) is type(ours)
        assert torch.equal(other(images()), ours(images()))
        assert type(genmod.restore(other)) is nn.Sequential
    assert is_swapped(ours)


def test_slices_and_single_layers_are_stock():
    ours, stock = model_and_stock()
    x = images()
    assert torch.equal(ours[:3](x), stock[:3](x))
    y = images()
    for mine, theirs in zip(ours, stock, strict=True):
        x, y = theirs(x), mine(y)
    assert torch.equal(x, y)


def test_shared_modules_and_frozen_parameters():
    norm, act = nn.GroupNorm(8, 32), nn.SiLU()
    stock = nn.Sequential(nn.Conv2d(4, 32, 1), norm, act, nn.Conv2d(32, 32, 1), norm, act)
    norm.weight.requires_grad_(False)
    ours = copy.deepcopy(stock)
    assert [s.pattern for s in genmod.accelerate(ours)].count("group_norm_act") == 2
    assert ours[1] is ours[4] and not ours[1].weight.requires_grad
    for model in (ours, stock):
        model(images()).square().mean().backward()
    close(ours[1].bias.grad, stock[1].bias.grad)
    assert ours[1].weight.grad is None


def test_fp16_scaling_of_folds_needs_a_word():
    stock = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU()).to(torch.bfloat16).eval()
    refused = genmod.accelerate(copy.deepcopy(stock))
    assert any('"folded"' in entry.why for entry in refused.left_alone)
    ours = copy.deepcopy(stock)
    assert genmod.accelerate(ours, allow="folded").swaps[0].pattern == "conv_bn_act"
    with torch.no_grad():
        close(ours(images(torch.bfloat16)), stock(images(torch.bfloat16)), 2e-2)


@pytest.mark.parametrize("training", [False, True])
def test_autocast(training: bool):
    ours, stock = model_and_stock(training)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = ours(images()), stock(images())
    assert found.dtype == expected.dtype
    close(found.float(), expected.float(), 1e-1)


def test_channels_last_and_inference_mode():
    ours, stock = model_and_stock()
    for model in (ours, stock):
        model.to(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        found, expected = ours(x), stock(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    close(found, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool):
    ours, stock = model_and_stock()
    x = [images().requires_grad_() for _ in range(2)]
    checkpoint(ours, x[0], use_reentrant=reentrant).square().mean().backward()
    stock(x[1]).square().mean().backward()
    close(x[0].grad, x[1].grad)


@pytest.mark.slow
def test_compile_has_no_graph_breaks():
    ours, stock = model_and_stock()
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    close(compiled(images()), stock(images()))
    compiled(images()).square().mean().backward()
    stock(images()).square().mean().backward()
    close(ours[0].weight.grad, stock[0].weight.grad, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_export(strict: bool):
    ours, stock = model_and_stock()
    program = torch.export.export(ours, (images(),), strict=strict)
    targets = {str(node.target) for node in program.graph.nodes}
    assert any(target.startswith("genmod.") for target in targets)
    close(program.module()(images()), stock(images()))


def test_tracing_by_fx_gives_the_stock_graph():
    ours, stock = model_and_stock()
    traced = torch.fx.symbolic_trace(ours)
    assert torch.equal(traced(images()), stock(images()))


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_distributed_wrappers(one_process: None, wrap: str):  # noqa: F811
    ours, stock = model_and_stock(training=True)
    wrapped = WRAPPERS[wrap](ours)
    for model in (wrapped, stock):
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        model(images()).square().mean().backward()
        optimiser.step()
    close(wrapped(images()), stock(images()), 1e-3)
    genmod.restore(wrapped)
    assert not any(is_swapped(m) for m in wrapped.modules())
    close(wrapped(images()), stock(images()), 1e-3)


@pytest.mark.gpu
def test_cuda_graphs():
    ours, stock = (m.cuda() for m in model_and_stock())
    x = images().cuda()
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            ours(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = ours(x)
    x.copy_(images().flip(0))
    graph.replay()
    with torch.no_grad():
        close(y, stock(x), 1e-3)
