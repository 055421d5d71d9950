"""Patterns in forwards written by hand: what is found, that it is the same model, and that it stays a module."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genmod


class ResBlock(nn.Module):
    """Group norms by module and by function, an optional argument, dropout, and the division by 1.0."""

    def __init__(self, channels: int = 8, dropout: float = 0.25) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.act, self.dropout, self.scale = nn.LeakyReLU(0.2, inplace=True), dropout, 1.0

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if embedding is not None:
            h = h + embedding[:, :, None, None]
        h = F.dropout(self.act(self.norm2(h)), self.dropout, self.training)
        return (x + self.conv2(h)) / self.scale


class Upsample(nn.Module):
    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class FunctionalNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(F.group_norm(x, 2, self.weight, self.bias, 1e-6), 0.1)


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp(), dim=1)


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.logvar, self.decoder = nn.Linear(12, 6), nn.Linear(12, 6), nn.Linear(6, 12)

    def sample(self, mean: Tensor, logvar: Tensor) -> Tensor:
        std = torch.exp(0.5 * logvar)
        return mean + torch.randn_like(std) * std

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.mean(x), self.logvar(x)
        return self.decoder(self.sample(mean, logvar)), kl_divergence(mean, logvar).mean()


IMAGE, EMBEDDING = (2, 8, 6, 6), (2, 8)
CASES = {
    "blocks": (ResBlock, [IMAGE], ["group_norm_act", "group_norm_act", "divide_by_one"]),
    "blocks with an embedding": (ResBlock, [IMAGE, EMBEDDING], ["group_norm_act", "group_norm_act", "divide_by_one"]),
    "large enough for the kernel": (ResBlock, [(2, 8, 40, 40)], ["group_norm_act", "group_norm_act", "divide_by_one"]),
    "upsampling": (Upsample, [IMAGE], ["upsample_conv"]),
    "group norm by function": (FunctionalNorm, [IMAGE], ["group_norm_act"]),
    "sampling and divergence": (VAE, [(5, 12)], ["reparameterize", "gaussian_kl"]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_same_outputs_and_gradients(case: str, dtype: torch.dtype):
    factory, shapes, patterns = CASES[case]
    torch.manual_seed(0)
    model = factory().to(dtype)
    report = genmod.accelerate(copy.deepcopy(model))
    assert sorted(swap.pattern for swap in report) == sorted(patterns)
    for mode in (True, False):
        comparison = genmod.compare(model.train(mode), [torch.randn(s, dtype=dtype) for s in shapes], budget=0)
        assert comparison.equal, str(comparison)


def test_transposed_convolution_keeps_its_statistics():
    torch.manual_seed(0)
    model, x = Transposed(), torch.randn(4, 8, 5, 5)
    fast = copy.deepcopy(model)
    report = genmod.accelerate(fast)
    assert len(report) == 1, str(report)
    assert genmod.compare(model, x, budget=0).equal
    for _ in range(2):
        torch.testing.assert_close(fast(x), model(x))
    assert fast.norm.num_batches_tracked == 2
    torch.testing.assert_close(fast.norm.running_var, model.norm.running_var)
    torch.testing.assert_close(fast.eval()(x), model.eval()(x))


class Usual(nn.Module):
    def forward(self, m: Tensor, s: Tensor) -> Tensor:
        return -0.5 * (1 + s - m**2 - s.exp()).sum()


class OtherWayRound(nn.Module):
    def forward(self, m: Tensor, s: Tensor) -> Tensor:
        return 0.5 * torch.sum(m * m + torch.exp(s) - s - 1.0)


class Mean(nn.Module):
    def forward(self, m: Tensor, s: Tensor) -> Tensor:
        return torch.mean(1 + s - torch.square(m) - torch.exp(s)) / -2


class Weighted(nn.Module):
    def forward(self, m: Tensor, s: Tensor) -> Tensor:
        return 2.0 * torch.sum(s.exp() + m.pow(2) - 1 - s, dim=-1)


class WrongSign(nn.Module):
    def forward(self, m: Tensor, s: Tensor) -> Tensor:
        return -0.5 * (1 + s + m**2 - s.exp()).sum()


class WrongTensor(nn.Module):
    def forward(self, m: Tensor, s: Tensor) -> Tensor:
        return -0.5 * (1 + m - m**2 - s.exp()).sum()


@pytest.mark.parametrize("factory", [Usual, OtherWayRound, Mean, Weighted, WrongSign, WrongTensor])
def test_divergence_in_every_spelling(factory):
    torch.manual_seed(0)
    right = factory not in (WrongSign, WrongTensor)
    assert len(genmod.accelerate(factory())) == right
    inputs = [torch.randn(4, 6), torch.randn(4, 6)]
    comparison = genmod.compare(factory(), inputs, budget=0)
    assert comparison.equal, str(comparison)
    assert genmod.compare(factory(), [t[:, :, None] for t in inputs], budget=0).equal, "of another rank"


def fast_block() -> tuple[ResBlock, ResBlock]:
    torch.manual_seed(0)
    model = ResBlock().eval()
    fast = copy.deepcopy(model)
    assert len(genmod.accelerate(fast)) == 3
    return model, fast


def test_it_stays_the_module_that_it_was():
    model, fast = fast_block()
    assert isinstance(fast, ResBlock) and type(fast).__name__ == "ResBlock"
    assert inspect.signature(fast.forward) == inspect.signature(model.forward)
    assert list(fast.state_dict()) == list(model.state_dict())
    assert not genmod.accelerate(fast).swaps, "a second time there is nothing to do"


def test_restore():
    model, fast = fast_block()
    assert genmod.restore(fast) is fast
    assert type(fast) is ResBlock and vars(fast).keys() == vars(model).keys()
    x = torch.randn(IMAGE)
    assert torch.equal(fast(x), model(x))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_fast_too(how: str):
    _, fast = fast_block()
    if how == "deepcopy":
        again = copy.deepcopy(fast)
    elif how == "pickle":
        again = pickle.loads(pickle.dumps(fast))
    else:
        file = io.BytesIO()
        torch.save(fast, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
    again.norm1.weight.data.fill_(2.0)
    assert not torch.equal(fast.norm1.weight, again.norm1.weight), "nothing is shared"
    x = torch.randn(IMAGE)
    assert torch.equal(again(x), again._genmod_swap.forward(again, x)), "it runs by a trace, without a warning"
    fast.load_state_dict(again.state_dict())
    assert torch.equal(fast(x), again(x))
    assert type(genmod.restore(again)) is ResBlock


def test_no_graph_break_and_traceable():
    model, fast = fast_block()
    x = torch.randn(IMAGE)
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    embedding = torch.randn(EMBEDDING)  # without one torch.fx does not follow the original either
    torch.testing.assert_close(torch.fx.symbolic_trace(fast)(x, embedding), model(x, embedding))


def test_filter_and_report():
    model = nn.Sequential(ResBlock(), ResBlock())
    report = genmod.accelerate(model, filter_fn=lambda module, path: path.startswith("1"))
    assert {swap.path for swap in report} == {"1"}
    assert report.to_dict()["swaps"][0]["was"] == "GroupNorm + F.SiLU"
