"""4x4 convolutions with stride 2, and their transposes, in models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import genmod
from genmod import _native

NATIVE = pytest.mark.skipif(not _native.loaded, reason=f"no C++ kernels: {_native.reason}")


class Hourglass(nn.Module):
    """Not a Sequential, so that no run of modules takes its convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.same = nn.Conv2d(32, 48, 4, 2, 1), nn.Conv2d(32, 48, 4, padding="same")
        self.second, self.few = nn.ConvTranspose2d(48, 32, 4, 2, 1), nn.Conv2d(32, 5, 4, 2, 1)

    def forward(self, x):
        return self.few(x + self.second(torch.sin(self.first(x)))), self.same(x)


def images():
    return torch.randn(4, 32, 32, 32, generator=torch.Generator().manual_seed(0))


def step(model, x):
    x = x.clone().requires_grad_()
    outputs = model(x)
    loss = sum(o.square().mean() for o in outputs)
    return *outputs, *torch.autograd.grad(loss, (x, *model.parameters()))


def test_what_is_swapped():
    report = genmod.accelerate(Hourglass())
    assert {s.path: s.pattern for s in report.swaps} == {"first": "conv4x4", "second": "conv_transpose4x4"}
    assert not {"same", "few"} & {entry.path for entry in report.left_alone}  # nothing that was looked for


@NATIVE
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_the_same_model(form):
    stock = Hourglass().to(memory_format=form)
    ours, x = copy.deepcopy(stock), images().contiguous(memory_format=form)
    genmod.accelerate(ours)
    with torch.profiler.profile() as profile:
        found = step(ours, x)
    assert any("conv4x4" in event.name for event in profile.events())
    for f, e in zip(found, step(stock, x), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-5)
    genmod.restore(ours)
    assert all(torch.equal(a, b) for a, b in zip(step(ours, x), step(stock, x), strict=True))


def test_other_inputs_take_the_convolution_itself():
    model = genmod.restore(Hourglass())
    genmod.accelerate(model)
    first, second = model.first, model.second
    assert first(torch.randn(32, 6, 6)).shape == (48, 3, 3)  # without a batch
    assert first(torch.randn(16, 32, 15, 21)).shape == (16, 48, 7, 10)  # an odd size
    assert first(torch.randn(0, 32, 6, 6)).shape == (0, 48, 3, 3)
    assert second(torch.randn(2, 48, 16, 16), output_size=[33, 32]).shape == (2, 32, 33, 32)
    with pytest.raises(RuntimeError, match="channels"):
        first(torch.randn(1, 31, 32, 32))
    with torch.autocast("cpu"):
        assert first(images()).dtype == torch.bfloat16


def test_compiled_and_exported():
    model, x = Hourglass().eval(), images()
    expected = model(x)
    genmod.accelerate(model)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
        exported = torch.export.export(model, (x,)).module()(x)
    for found in (compiled, exported):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
