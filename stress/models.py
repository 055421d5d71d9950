"""Random models through `genmod.accelerate` and `genmod.restore`.

A model is a tree of convolutions, norms, activations, upsamplings, residuals and shared blocks; some of its modules in
evaluation, hooked or frozen. Held against the same model untouched: outputs, gradients, buffers, hooks that ran, the
keys and values of the state_dict; and, after `restore`, classes, attributes and the bits of the outputs.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

import genmod
from genmod.swap import ALLOW

from .report import Outcome

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.SiLU,
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    nn.GELU,
    lambda: nn.LeakyReLU(0.2),
    lambda: nn.LeakyReLU(0.1, inplace=True),
    nn.Tanh,
    nn.Sigmoid,
    nn.ELU,  # no pattern knows it
)
#: Of the norm of all gradients, or of outputs, how far off a model may be if stock PyTorch is hardly off at all.
_FLOOR = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 6e-2}


class Residual(nn.Module):
    """`x + block(x)`."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Counting:
    """A hook that counts its calls, and changes the output if it is to."""

    def __init__(self, factor: float) -> None:
        self.factor, self.calls = factor, 0

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        self.calls += 1
        return None if self.factor == 1 else output * self.factor


class Builder:
    """Random blocks, all from one seed."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)
        self.channels = self.rng.choice((3, 4, 8))

    def norm(self, channels: int) -> list[nn.Module]:
        groups = [g for g in (1, 2, 3, 4) if channels % g == 0]
        affine = self.rng.random() < 0.8
        kinds: tuple[Callable[[], list[nn.Module]], ...] = (
            list,
            lambda: [nn.GroupNorm(self.rng.choice(groups), channels, affine=affine)],
            lambda: [nn.BatchNorm2d(channels, affine=affine, momentum=self.rng.choice((0.1, None)))],
            lambda: [nn.BatchNorm2d(channels, track_running_stats=self.rng.random() < 0.8)],
        )
        return self.rng.choice(kinds)()

    def activation(self) -> list[nn.Module]:
        return [self.rng.choice(ACTIVATIONS)()] if self.rng.random() < 0.8 else []

    def convolution(self, inputs: int, outputs: int) -> nn.Module:
        kernel = self.rng.choice((1, 3))
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=self.rng.random() < 0.7)

    def block(self, depth: int) -> list[nn.Module]:
        """Layers that keep the number of channels."""
        c, wide = self.channels, self.rng.choice((self.channels, 2 * self.channels))
        kind = self.rng.randrange(6 if depth else 3)
        if kind == 0:
            return [self.convolution(c, wide), *self.norm(wide), *self.activation(), self.convolution(wide, c)]
        if kind == 1:
            return [*self.norm(c), *self.activation()]
        if kind == 2:
            return [self.convolution(c, c), *self.norm(c), *self.activation(), nn.Identity()]
        inner = nn.Sequential(*self.block(depth - 1), *self.block(depth - 1))
        if kind == 3:
            return [Residual(inner)]
        return [inner] if kind == 4 else [inner, *self.activation(), inner]  # the same module twice

    def growing(self) -> list[nn.Module]:
        """Twice the resolution."""
        c = self.channels
        if self.rng.random() < 0.5:
            conv = nn.Conv2d(c, c, 3, padding=1, bias=self.rng.random() < 0.7)
            return [nn.Upsample(scale_factor=2, mode=self.rng.choice(("nearest", "nearest", "bilinear"))), conv]
        return [nn.ConvTranspose2d(c, c, 4, 2, 1, bias=self.rng.random() < 0.5)]

    def model(self) -> nn.Sequential:
        layers: list[nn.Module] = [nn.Conv2d(3, self.channels, 3, padding=1)]
        for _ in range(self.rng.randint(1, 4)):
            layers += self.block(2)
            if self.rng.random() < 0.3:
                layers += [*self.growing(), *self.norm(self.channels), *self.activation()]
        return nn.Sequential(*layers)

    def disturb(self, model: nn.Module) -> None:
        """Random parameters and statistics, modes, hooks and frozen parameters."""
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                with torch.no_grad():
                    tensor.add_(0.1 * torch.randn_like(tensor)).abs_() if tensor in set(model.buffers()) else (
                        tensor.add_(0.1 * torch.randn_like(tensor))
                    )
        model.train(self.rng.random() < 0.5)
        for module in model.modules():
            if self.rng.random() < 0.05:
                module.train(not module.training)
            if self.rng.random() < 0.05:
                module.register_forward_hook(Counting(self.rng.choice((1.0, 0.5))))
        for parameter in model.parameters():
            parameter.requires_grad_(self.rng.random() > 0.1)


def hooks(model: nn.Module) -> list[int]:
    """How often each hook was called."""
    return [h.calls for m in model.modules() for h in m._forward_hooks.values() if isinstance(h, Counting)]


def evaluate(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and all gradients in one vector."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(x)
    leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    grads = torch.autograd.grad(y, leaves, cotangent, allow_unused=True)
    flat = [g.detach().double().flatten() for g in grads if g is not None]
    return y.detach(), torch.cat(flat)


def _off(a: Tensor, b: Tensor) -> float:
    """How far `a` is from `b`, relative to the norm of `b`."""
    return ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)).item()


def check(seed: str) -> int:
    """One model; returns how many of its modules were swapped, and raises AssertionError where something differs."""
    builder = Builder(seed)
    rng = builder.rng
    torch.manual_seed(rng.getrandbits(32))
    stock = builder.model()
    builder.disturb(stock)
    dtype = rng.choice((torch.float32, torch.float32, torch.float32, torch.float64, torch.bfloat16))
    stock.to(dtype)
    size = rng.choice((2, 4, 7, 8))
    x = torch.randn(rng.randint(2, 3), 3, size, size, dtype=dtype)
    if rng.random() < 0.3:
        x = x.contiguous(memory_format=torch.channels_last)
    try:
        exact = evaluate(copy.deepcopy(stock).double(), x.double())
    except RuntimeError:  # stock PyTorch refuses it: an activation in place on what a backward needs
        for module in stock.modules():
            if hasattr(module, "inplace"):
                module.inplace = False
        exact = evaluate(copy.deepcopy(stock).double(), x.double())
    model, untouched = copy.deepcopy(stock), copy.deepcopy(stock)
    allow = tuple(word for word in ALLOW if rng.random() < 0.5)
    classes = [(type(m), set(vars(m))) for m in stock.modules()]
    report = genmod.accelerate(model, training=rng.choice((None, True, False)), allow=allow)

    mine, theirs = model.state_dict(), stock.state_dict()
    assert list(mine) == list(theirs), "keys of the state_dict"
    assert all(torch.equal(mine[k], theirs[k]) for k in mine), "values of the state_dict"
    for m, (kind, _) in zip(model.modules(), classes, strict=True):
        assert isinstance(m, kind), f"{type(m).__name__} is no {kind.__name__}"
    expected, found = evaluate(stock, x), evaluate(model, x)
    assert found[0].dtype == expected[0].dtype and found[0].shape == expected[0].shape, "dtype or shape"
    for what, o, e, f in zip(("outputs", "gradients"), exact, expected, found, strict=True):
        if e.isfinite().all():
            off, bound = _off(f, o), max(8 * _off(e, o), _FLOOR[dtype])
            assert off <= bound, f"{what} are off by {off:.3g} of their norm, stock PyTorch's by {_off(e, o):.3g}"
    assert hooks(model) == hooks(stock), f"hooks ran {hooks(model)} times, expected {hooks(stock)}"
    for (name, a), b in zip(model.named_buffers(), stock.buffers(), strict=True):
        assert _off(a, b) <= _FLOOR[dtype], f"buffer {name}"
    with torch.no_grad():
        a, b = model(x), stock(x)
        assert _off(a, b) <= max(_FLOOR[dtype], 100 * _off(expected[0], exact[0])), "outputs without gradients"

    genmod.restore(model)
    model.load_state_dict(untouched.state_dict())
    for m, (kind, names) in zip(model.modules(), classes, strict=True):
        assert type(m) is kind and set(vars(m)) == names, f"something is left in a {kind.__name__}"
    assert all(map(torch.equal, evaluate(model, x), evaluate(untouched, x))), "other bits after restore"
    return len(report.swaps)


def run(cases: int, *, seed: int) -> Outcome:
    """So many models. `refused` counts those in which nothing was there to swap."""
    outcome = Outcome("models", "accelerate and restore")
    with outcome, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index in range(cases):
            name = f"{seed}/{index}"
            outcome.cases += 1
            try:
                outcome.refused += check(name) == 0
            except Exception as error:
                outcome.fail(f"model {name}: {type(error).__name__}: {error}"[:500])
    return outcome
