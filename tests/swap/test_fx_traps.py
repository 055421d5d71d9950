"""What a trace would freeze or lose: either the module is left alone, with the reason, or the call notices."""

from __future__ import annotations

import copy
import functools
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genmod

FLAG = True


class Base(nn.Module):
    """A module with a pattern in it; subclasses do something to `h` besides."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1)
        self.sizes, self.flag, self.act = [1, 2], True, F.silu

    def body(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(x))


class DataBranch(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if x.sum() > 0 else x


class ShapeBranch(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if x.shape[0] > 1 else x


class AsksForType(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if isinstance(x, Tensor) else x


class AsksResultForNone(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return x if h is None else self.body(h)


class WithBlock(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.body(x)


@torch.no_grad()
def frozen(x: Tensor) -> Tensor:
    return x * 2


class DecoratedHelper(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(frozen(x))


class DecoratedForward(Base):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class AsksForGradMode(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if torch.is_grad_enabled() else x


class AsksForChance(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if random.random() < 0.5 else x


class GlobalFlag(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if FLAG else x


class Prints(Base):
    def forward(self, x: Tensor) -> Tensor:
        print("forward")
        return self.body(x)


class Remembers(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.body(x)
        return self.last


class FreshNoise(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x + torch.randn(4, 1, 1))


class AnyArguments(Base):
    def forward(self, x: Tensor, *rest: Tensor, **options: Tensor) -> Tensor:
        return self.body(x)


class TriesFirst(Base):
    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.body(x)
        except RuntimeError:
            return x


def with_closure() -> nn.Module:
    power = [1.0]

    class Closure(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) * power[0]

    return Closure()


REFUSED = {
    DataBranch: "does not follow",
    ShapeBranch: "does not follow",
    AsksForType: "isinstance",
    AsksResultForNone: "h is None",
    WithBlock: "a with block",
    DecoratedHelper: "decorated",
    DecoratedForward: "decorated",
    AsksForGradMode: "torch.is_grad_enabled",
    AsksForChance: "random.random",
    GlobalFlag: "FLAG",
    Prints: "print",
    Remembers: "assigns to .last",
    FreshNoise: "torch.randn",
    AnyArguments: "whatever that is",
    TriesFirst: "a try block",
    with_closure: "power",
}


@pytest.mark.parametrize("factory", REFUSED, ids=lambda f: f.__name__)
def test_left_alone_with_the_reason(factory):
    model = factory()
    report = genmod.accelerate(model)
    assert not report.swaps
    assert REFUSED[factory] in " ".join(entry.why for entry in report.left_alone), str(report)
    assert not hasattr(model, "_genmod_swap")


def test_a_forward_on_the_instance_is_left_alone():
    model = Base()
    model.forward = functools.partial(Base.body, model)  # type: ignore[method-assign]
    assert not genmod.accelerate(model).swaps


class Plain(Base):
    def forward(self, x: Tensor, gain: float = 1.0, extra: Tensor | None = None) -> Tensor:
        h = self.act(self.norm(x)) if self.flag else self.body(x) * 2
        for size in self.sizes:
            h = h * size
        h = F.dropout(h, 0.5, self.training)
        return h * gain if extra is None else h + extra


X = torch.linspace(-2, 3, 2 * 4 * 5 * 5).reshape(2, 4, 5, 5)


def pair() -> tuple[Plain, Plain]:
    torch.manual_seed(0)
    model = Plain().eval()
    fast = copy.deepcopy(model)
    assert genmod.accelerate(fast).swaps
    return model, fast


def same(model: nn.Module, fast: nn.Module, *args: object, **kwargs: object) -> None:
    torch.manual_seed(1)
    wanted = model(*args, **kwargs)
    torch.manual_seed(1)
    torch.testing.assert_close(fast(*args, **kwargs), wanted)


def test_modes_and_optional_tensors_are_traced_each():
    model, fast = pair()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in (True, False):
            model.train(mode), fast.train(mode)
            same(model, fast, X)
            same(model, fast, X, extra=X)
            same(model, fast, x=X)


CHANGES = {
    "another value for an argument": lambda m: {"gain": 3.0},
    "a flag": lambda m: setattr(m, "flag", False),
    "a list in place": lambda m: m.sizes.append(5),
    "another function": lambda m: setattr(m, "act", F.relu),
    "1 for True": lambda m: setattr(m, "flag", 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_read_may_change(change: str):
    model, fast = pair()
    options = [CHANGES[change](m) or {} for m in (model, fast)].pop()
    with pytest.warns(UserWarning, match="none of its traces holds"):
        same(model, fast, X, **options)
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        same(model, fast, X, **options)


def test_hooks_that_come_later_are_called():
    model, fast = pair()
    seen = []
    fast.norm.register_forward_hook(lambda module, args, output: seen.append(output))
    with pytest.warns(UserWarning, match="hooks"):
        same(model, fast, X)
    torch.testing.assert_close(seen[0], model.norm(X))


def test_a_submodule_that_is_replaced_is_used():
    model, fast = pair()
    for m in (model, fast):
        m.norm = nn.Identity()
    with pytest.warns(UserWarning, match="stock path"):
        same(model, fast, X)


def test_other_inputs_take_the_stock_path():
    model, fast = pair()
    with pytest.warns(UserWarning, match="stock path"):
        same(model, fast, X[..., None, None, None].expand(2, 4, 5, 5, 1, 1, 2))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(2, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = F.silu(norm(x))
        return x


def test_a_container_that_grows():
    model = Stack()
    fast = copy.deepcopy(model)
    assert len(genmod.accelerate(fast)) == 2
    same(model, fast, X)
    for m in (model, fast):
        m.norms.append(nn.GroupNorm(2, 4))
    with pytest.warns(UserWarning, match="none of its traces holds"):
        same(model, fast, X)


class Shared(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.norm(x)
        return F.silu(h), h


class Tanh(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(x), approximate="tanh")


class ChangesItsInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.5
        h = self.conv(F.interpolate(x, scale_factor=2))
        return h.sum() + F.relu(x, inplace=True).sum()


@pytest.mark.parametrize("factory", [Shared, Tanh, ChangesItsInput])
def test_what_is_no_such_pattern(factory):
    model = factory()
    report = genmod.accelerate(model)
    assert not report.swaps, str(report)
    same(factory.forward.__get__(model), model, X)


class AddsInPlace(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.conv(x)
        same = h
        same += 1
        return self.body(x), h


def test_addition_in_place_stays_in_place():
    torch.manual_seed(0)
    model = AddsInPlace()
    fast = copy.deepcopy(model)
    assert genmod.accelerate(fast).swaps
    same(model, fast, X)


def test_nothing_of_the_model_is_touched():
    model = Plain()
    before = {name: dict(vars(m)) for name, m in model.named_modules()}
    torch_getattr, torch_call = nn.Module.__getattr__, nn.Module.__call__
    genmod.restore(model)
    genmod.accelerate(model, filter_fn=lambda module, path: not path)  # refused: the norm is not accepted
    assert {name: dict(vars(m)) for name, m in model.named_modules()} == before
    assert nn.Module.__getattr__ is torch_getattr and nn.Module.__call__ is torch_call
