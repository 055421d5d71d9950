"""`genmod.compare`: equal models are equal, others are told apart, and nothing of the caller's changes."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genmod
from genmod import ops
from genmod.comparison import Inputs
from genmod.comparison.observe import named_tensors
from genmod.comparison.run import difference


def decoder() -> nn.Module:
    return nn.Sequential(
        nn.GroupNorm(4, 8), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 3, padding=1), nn.BatchNorm2d(3)
    )


X = torch.linspace(-2, 2, 2 * 8 * 6 * 6).reshape(2, 8, 6, 6)


def test_the_same_model(tmp_path: Path):
    comparison = genmod.compare(decoder, X, compile=False, budget=0.5)
    assert comparison.equal and not comparison.outside and not comparison.random
    kinds = [d.kind for d in comparison.differences]
    assert kinds.count("output") == kinds.count("input gradient") == 1 and kinds.count("parameter gradient") == 6
    assert [d.name for d in comparison.differences if d.kind == "buffer"] == [
        "4.running_mean",
        "4.running_var",
        "4.num_batches_tracked",
    ]
    assert [(s.mode, s.contender) for s in comparison.speeds] == [
        (mode, name) for mode in ("forward", "forward+backward") for name in ("stock", "genmod")
    ]
    assert all(s.seconds > 0 and s.peak_bytes > 0 and s.time_ratio > 0 for s in comparison.speeds)
    text = str(comparison)
    assert "Sequential on cpu, float32, training" in text and "forward+backward" in text and "OUTSIDE" not in text
    comparison.to_json(tmp_path / "c.json")
    read = json.loads((tmp_path / "c.json").read_text())
    assert read["equal"] and read["swaps"]["swaps"] and len(read["differences"]) == len(comparison.differences)
    comparison.plot(tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert comparison.images is not None and comparison.images[0].shape == (3, 12, 12)


def test_another_model_is_told_apart():
    torch.manual_seed(0)
    model = decoder()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[3].weight[0, 0, 0, 0] += 1e-2
    comparison = genmod.compare(model, X, accelerated=other, budget=0)
    assert not comparison.equal and "NOT THE SAME MODEL" in str(comparison) and not comparison.to_dict()["equal"]
    assert "output" in {d.kind for d in comparison.outside}
    assert genmod.compare(model, X, accelerated=model, budget=0).differences[0].bit_equal


def test_a_wrong_gradient_alone_is_told_apart():
    class Detached(nn.Module):
        def __init__(self, wrong: bool) -> None:
            super().__init__()
            self.linear, self.wrong = nn.Linear(8, 8), wrong

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return y * (y.detach() if self.wrong else y)

    torch.manual_seed(0)
    right, wrong = Detached(False), Detached(True)
    wrong.load_state_dict(right.state_dict())
    comparison = genmod.compare(right, torch.randn(4, 8), accelerated=wrong, budget=0)
    assert {d.kind for d in comparison.outside} == {"input gradient", "parameter gradient"}


def test_what_one_of_them_lacks_is_said():
    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x * 2

    model = Pair(3, 3)
    comparison = genmod.compare(model, torch.randn(2, 3), accelerated=nn.Linear(3, 3), budget=0)
    assert any("has none" in d.missing for d in comparison.differences) and not comparison.equal


def test_nothing_of_the_callers_changes():
    torch.manual_seed(0)
    model = decoder()
    genmod.accelerate(model)
    types = [type(m) for m in model.modules()]
    state = {name: t.clone() for name, t in model.state_dict().items()}
    model[3].weight.grad = gradient = torch.ones_like(model[3].weight)
    x = X.clone().requires_grad_()
    random = torch.get_rng_state()
    assert genmod.compare(model, x, compile=False, budget=0.2).equal, "its original is compared, not the fast model"
    assert torch.equal(torch.get_rng_state(), random)
    assert [type(m) for m in model.modules()] == types
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert model[3].weight.grad is gradient and (gradient == 1).all() and x.grad is None


@dataclasses.dataclass
class Output:
    sample: Tensor
    extra: dict[str, Tensor]


def test_every_kind_of_output_is_taken_apart():
    t = torch.zeros(1)
    value = [Output(t, {"a": t}), (t, {"b": [t]}), OrderedDict(c=t), torch.distributions.Normal(t, t + 1), None, "text"]
    names = ["[0].sample", "[0].extra['a']", "[1][0]", "[1][1]['b'][0]", "[2]['c']", "[3].mean", "[3].loc", "[3].scale"]
    assert list(named_tensors(value, "")) == names
    assert list(named_tensors(t, "")) == ["output"]


def test_output_of_diffusers():
    outputs = pytest.importorskip("diffusers.models.autoencoders.vae")
    modeling = pytest.importorskip("diffusers.models.modeling_outputs")
    posterior = outputs.DiagonalGaussianDistribution(torch.zeros(1, 4, 2, 2))
    found = named_tensors(modeling.AutoencoderKLOutput(latent_dist=posterior), "")
    assert set(found) == {"['latent_dist'].mean", "['latent_dist'].logvar"}


class Sampler(nn.Module):
    """Draws in torch's way, or in genmod's; both must see the same noise in every dtype."""

    def __init__(self, fused: bool, dropout: float = 0.3) -> None:
        super().__init__()
        self.linear, self.fused, self.dropout = nn.Linear(6, 8), fused, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.dropout(self.linear(x)).chunk(2, 1)
        if self.fused:
            return ops.sample_kl(mean, logvar, reduction="sum")
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return z, -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_same_noise(dtype: torch.dtype):
    torch.manual_seed(0)
    stock, fused = Sampler(False).to(dtype), Sampler(True).to(dtype)
    fused.load_state_dict(stock.state_dict())
    x = torch.randn(16, 6, dtype=dtype)
    comparison = genmod.compare(stock, x, accelerated=fused, budget=0)
    assert comparison.random and "draws noise" in str(comparison)
    z = comparison.differences[0]
    assert z.relative_stock < 0.05 and z.relative < 0.05, "against other noise it would be about 1"
    assert dtype not in (torch.float32, torch.float64) or comparison.equal, str(comparison)


class Draws(nn.Module):
    """Every draw that is covered."""

    def forward(self, x: Tensor) -> Tensor:
        y = x + torch.rand_like(x) + torch.randn(x.shape).to(x) + torch.empty_like(x).uniform_(-2, 1)
        y = y + torch.empty_like(x).normal_(1.0, 2.0) + torch.normal(0.0, 3.0, x.shape).to(x)
        y = y * torch.empty_like(x).bernoulli_(0.5) + torch.bernoulli(torch.full_like(x, 0.25))
        y = y + torch.randint(5, x.shape).to(x) + torch.randint_like(x, 2, 7)
        return F.dropout(y, 0.5)[:, torch.randperm(x.shape[1])]


def test_every_covered_draw_is_the_same_in_every_dtype():
    comparison = genmod.compare(Draws(), torch.randn(40, 30), budget=0)
    assert comparison.equal and comparison.differences[0].relative_stock < 1e-6, str(comparison)
    wide = genmod.compare(Draws(), torch.randn(40, 30).bfloat16(), budget=0).differences[0]
    assert wide.relative_stock < 0.02


def test_other_draws_are_refused():
    class Multinomial(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, torch.multinomial(x.detach().softmax(1), 1)[0]]

    with pytest.raises(ValueError, match="aten::multinomial"):
        genmod.compare(Multinomial(3, 3), torch.randn(2, 3), budget=0)


def test_attention_without_dropout_draws_nothing():
    attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    comparison = genmod.compare(attention, torch.randn(2, 5, 8), budget=0)
    assert comparison.equal and not comparison.random


def test_noise_is_drawn_again_in_checkpoints():
    class Checkpointed(Sampler):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    torch.manual_seed(0)
    plain, checkpointed = Sampler(False), Checkpointed(False)
    checkpointed.load_state_dict(plain.state_dict())
    assert genmod.compare(plain, torch.randn(8, 6), accelerated=checkpointed, budget=0).equal


def test_infinities_and_nan_are_equal_to_themselves():
    t = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0])
    d = difference("output", "x", t, t, t.double(), 1.0)
    assert d.largest == 0 and d.bit_equal
    assert difference("output", "x", t, t.flip(0), t.double(), 1.0).largest == float("inf")


def test_inputs_by_name_integers_and_no_backward():
    class Conditional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 4)

        def forward(self, x: Tensor, *, label: Tensor) -> Tensor:
            return x + self.embedding(label)

    inputs = Inputs((torch.randn(3, 4),), {"label": torch.tensor([0, 1, 4])})
    comparison = genmod.compare(Conditional(), inputs, budget=0)
    assert comparison.inputs == ("0[3, 4]", "label[3]") and comparison.equal
    forward_only = genmod.compare(
        Conditional(), {"x": torch.randn(3, 4), "label": torch.tensor([2, 2, 2])}, backward=False, budget=0
    )
    assert {d.kind for d in forward_only.differences} == {"output"}


def test_a_failing_compile_is_a_line_of_the_table(monkeypatch: pytest.MonkeyPatch):
    def refuse(model: nn.Module) -> nn.Module:
        class Refusing(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                raise RuntimeError("no compiler here\nand more")

        return Refusing()

    monkeypatch.setattr(torch, "compile", refuse)
    comparison = genmod.compare(nn.Linear(4, 4), torch.randn(2, 4), budget=0.1)
    assert comparison.compile_error == "RuntimeError: no compiler here"
    assert "no compiler here" in str(comparison) and {s.contender for s in comparison.speeds} == {"stock", "genmod"}


def test_compiled_is_timed(monkeypatch: pytest.MonkeyPatch):
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile(model, backend="eager"))  # Inductor takes a minute
    comparison = genmod.compare(nn.Linear(4, 4), torch.randn(2, 4), budget=0.1)
    assert comparison.compile_error is None
    assert [s.contender for s in comparison.speeds[:3]] == ["stock", "compile", "genmod"]


class HalfOnly(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.float(), self.bias.float())


@pytest.mark.parametrize(
    ("model", "inputs", "options", "error", "message"),
    [
        (3, X, {}, TypeError, "model_or_factory: got int"),
        (lambda: 3, X, {}, TypeError, "it returned a int"),
        (nn.Identity(), 3, {}, TypeError, "inputs: got int"),
        (nn.Identity(), {1: X}, {}, TypeError, "inputs: got the keys"),
        (nn.Identity(), X, {"reference": "float64"}, TypeError, "reference"),
        (nn.Identity(), X, {"reference": torch.float16}, ValueError, "reference"),
        (nn.Identity(), X, {"accelerated": 3}, TypeError, "accelerated: got int"),
        (nn.Identity(), torch.arange(3), {}, ValueError, "no floating-point tensor"),
        (nn.Flatten(0).requires_grad_(False), ["text", X.long()], {}, ValueError, "no floating-point tensor"),
        (HalfOnly(3, 3), torch.randn(2, 3), {}, ValueError, "does not run in torch.float64"),
    ],
)
def test_bad_input(model, inputs, options, error, message):
    with pytest.raises(error, match=message):
        genmod.compare(model, inputs, budget=0, **options)


def test_nothing_to_differentiate():
    class Constant(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    with pytest.raises(ValueError, match="backward=False"):
        genmod.compare(Constant(2, 2), torch.randn(2, 2), budget=0)


def test_nothing_to_draw(tmp_path: Path):
    with pytest.raises(ValueError, match="without times and images"):
        genmod.compare(nn.Linear(2, 2), torch.randn(2, 2), budget=0).plot(tmp_path / "x.png")
