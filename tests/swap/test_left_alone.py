"""What accelerate leaves alone, and says so; and arguments that it refuses."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import genmod
from genmod.swap import gains


def pair(norm: nn.Module | None = None, act: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(norm or nn.GroupNorm(8, 32), act or nn.SiLU())


def x() -> torch.Tensor:
    return torch.randn(2, 32, 32, 32, generator=torch.Generator().manual_seed(0))


class OtherNorm(nn.GroupNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class Reversed(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        for module in reversed(self):
            input = module(input)
        return input


def hooked() -> nn.Module:
    model = pair()
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    return model


def replaced() -> nn.Module:
    model = pair()
    model[1].forward = torch.relu
    return model


def compiled_in_place() -> nn.Module:
    model = pair()
    model.compile(backend="eager")
    return model


def quantised() -> nn.Module:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
    model[0].weight = nn.Parameter(torch.quantize_per_tensor(torch.randn(32, 32), 0.1, 0, torch.qint8), False)
    return model


def sparse() -> nn.Module:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
    model[0].weight = nn.Parameter(torch.eye(32).to_sparse())
    return model


CASES = {
    "subclass": (lambda: pair(OtherNorm(8, 32)), "OtherNorm computes is not known"),
    "approximation": (lambda: pair(act=nn.GELU(approximate="tanh")), "another function"),
    "order": (lambda: Reversed(nn.GroupNorm(8, 32), nn.SiLU()), "forward of its own"),
    "hook": (hooked, "hooks on its GroupNorm"),
    "weight norm": (lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(32, 32)), nn.ReLU()), "hooks on its Linear"),
    "replaced forward": (replaced, "replaced on the instance"),
    "torch.compile": (lambda: nn.Sequential(torch.compile(pair(), backend="eager")), "compiled already"),
    "Module.compile": (lambda: nn.Sequential(compiled_in_place()), "compiled already"),
    "script": (lambda: nn.Sequential(torch.jit.script(pair())), "ScriptModule"),
    "fx": (lambda: nn.Sequential(torch.fx.symbolic_trace(pair())), "GraphModule"),
    "meta": (lambda: pair().to("meta"), "meta"),
    "quantised": (quantised, "quantised"),
    "sparse": (sparse, "sparse"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4), nn.ReLU()), "LazyLinear"),
    "geometry": (lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 5, padding=2)), "3x3"),
    "bilinear": (
        lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 3, 3, padding=1)),
        "bilinear",
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_left_alone_with_the_reason(case: str):
    make, why = CASES[case]
    model = make()
    classes = [type(m) for m in model.modules()]
    report = genmod.accelerate(model)
    assert not report.swaps
    assert any(why in entry.why for entry in report.left_alone), str(report)
    assert why in str(report)
    assert [type(m) for m in model.modules()] == classes


def test_parametrisations_are_followed():
    """A weight that is computed is computed at each call."""
    stock = nn.Sequential(
        nn.Upsample(scale_factor=2), parametrizations.weight_norm(nn.Conv2d(4, 8, 3, padding=1)), nn.ReLU()
    )
    ours = copy.deepcopy(stock)
    assert [s.pattern for s in genmod.accelerate(ours)] == ["upsample_conv_act"]
    for model in (stock, ours):
        with torch.no_grad():
            model[1].parametrizations.weight.original0.mul_(3)
    image = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(ours(image), stock(image), rtol=1e-4, atol=1e-5)


def test_where_stock_was_measured_to_be_as_fast(monkeypatch: pytest.MonkeyPatch):
    measured = {("cpu", torch.float32): {"group_norm_act": gains.Gain(evaluation=1.5, training=0.9)}}
    monkeypatch.setattr(gains, "MEASURED", measured)
    report = genmod.accelerate(pair(), training=True)
    assert not report.swaps and "as fast there in training: 0.90x measured" in report.left_alone[0].why
    assert genmod.accelerate(pair(), training=False).swaps[0].gain == 1.5
    assert genmod.accelerate(pair().double()).swaps[0].gain is None


def test_nothing_to_swap():
    report = genmod.accelerate(nn.Linear(3, 3))
    assert len(report) == 0 and "Nothing to swap" in str(report)


def test_filter():
    model = nn.Sequential(pair(), pair())
    asked = []

    def second(module: nn.Module, path: str) -> bool:
        asked.append(path)
        return path.startswith("1.")

    assert [s.path for s in genmod.accelerate(model, filter_fn=second)] == ["1.0-1"]
    assert "0.0" in asked
    with pytest.warns(UserWarning, match="accepted no module"):
        report = genmod.accelerate(pair(), filter_fn=lambda module, path: False)
    assert "filter_fn" in report.note


def test_twice_is_once():
    model = nn.Sequential(pair(), nn.Conv2d(32, 8, 1))
    genmod.accelerate(model)
    expected = model(x())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = genmod.accelerate(model)
    assert not report.swaps and "already" in report.note
    assert torch.equal(model(x()), expected)


def test_hooks_that_come_later_are_called():
    stock = pair()
    model = copy.deepcopy(stock)
    genmod.accelerate(model)
    seen = []
    handle = model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    with pytest.warns(UserWarning, match="hooks on its GroupNorm"):
        result = model(x())
    assert torch.equal(result, stock(x())) and torch.equal(seen[0], stock[0](x()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        model(x())
    handle.remove()
    seen.clear()
    torch.testing.assert_close(model(x()), result, rtol=1e-5, atol=1e-5)
    assert not seen


def test_modules_that_are_replaced_later_are_used():
    model = pair()
    genmod.accelerate(model)
    model[1] = nn.Softplus()
    with pytest.warns(UserWarning, match="Softplus"):
        torch.testing.assert_close(model(x()), nn.functional.softplus(model[0](x())))


def test_inputs_that_are_not_covered_take_the_stock_path():
    stock = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU())
    model = copy.deepcopy(stock)
    genmod.accelerate(model)
    six = torch.randn(2, 4, 2, 2, 2, 2)
    with pytest.warns(UserWarning, match="stock path: an input of shape"):
        assert torch.equal(model(six), stock(six))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(six)


def test_an_in_place_activation_that_others_may_see():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.LeakyReLU(0.2, inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(x) + x

    report = genmod.accelerate(Reads(), allow=("exact", "critic"))
    assert not report.swaps and "in place" in report.left_alone[0].why


def test_report_for_people_and_programs():
    report = genmod.accelerate(nn.Sequential(pair(), pair(OtherNorm(8, 32))), training=False)
    (swap,) = report
    assert (swap.path, swap.was, swap.exactness) == ("0.0-1", "GroupNorm + SiLU", "reassociated")
    assert swap.gain is not None and f"{swap.gain:.2f}x" in str(report)
    assert json.loads(report.to_json()) == report.to_dict()
    assert report.to_dict()["swaps"][0]["pattern"] == "group_norm_act"
    lines = str(report).splitlines()
    assert lines[0].startswith("module") and lines[2].startswith("0.0-1")


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"model": torch.relu}, TypeError, "model: got builtin"),
        ({"filter_fn": "norm"}, TypeError, "filter_fn: got str"),
        ({"training": 1}, TypeError, "training: got 1"),
        ({"allow": ("exact", "fast")}, ValueError, "allow: got 'fast', expected words of exact"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], match: str):
    with pytest.raises(error, match=match):
        genmod.accelerate(**{"model": pair(), **arguments})


def test_restore_refuses_what_is_no_module():
    with pytest.raises(TypeError, match="model: got int"):
        genmod.restore(3)
