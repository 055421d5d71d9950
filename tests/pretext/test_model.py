"""Every task on an encoder: it learns, by its generator alone, in phases as every model does, and it can be saved."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genmod.models import CheckpointError, Model
from genmod.models.networks import ConvEncoder
from genmod.pretext import PretextConfig, PretextModel, Rotation, Task, clips, tasks

NAMES = sorted(tasks())
SMALL = {"image_size": 8, "channels": 3, "frames": 5, "width": 8, "stages": 2}
# What lets a tiny encoder learn in a few dozen steps; the task itself stays as it is.
OPTIONS = {
    "temporal_order": {"kind": "pair"},
    "colorization": {"kind": "classification", "stride": 2},
    "missing_patch": {"adversarial": 0.001, "critic_width": 8},
    "future": {"hidden": 16},
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes(n: int, size: int = 8, seed: int = 3) -> Tensor:
    """Images with an up, a left and colours by lightness: a bright ramp from the top, redder to the right."""
    ramp = torch.linspace(1, 0, size)
    down, across = torch.meshgrid(ramp, ramp, indexing="ij")
    base = torch.stack([0.2 + 0.7 * down, 0.1 + 0.6 * down * across, 0.5 * (1 - down)])
    strength = 0.2 + 0.8 * torch.rand(n, 1, 1, 1, generator=seeded(seed))
    return (base * strength + 0.03 * torch.randn(n, 3, size, size, generator=seeded(seed + 1))).clamp(0, 1)


def samples(model: PretextModel, n: int, seed: int = 3) -> Tensor:
    if not model.task.clips:
        return scenes(n, seed=seed)
    # A bright square that goes to the right: where it is says when.
    square = torch.ones(n, 3, 4, 4) * (0.5 + 0.5 * torch.rand(n, 3, 1, 1, generator=seeded(seed)))
    return clips.translate(square, 5, 8, direction="right", generator=seeded(seed)).frames


def make(name: str, seed: int = 0) -> PretextModel:
    torch.manual_seed(seed)
    return PretextModel.from_config(PretextConfig(name, OPTIONS.get(name, {}), **SMALL))


def train(model: PretextModel, steps: int, seed: int = 0) -> list[float]:
    generator = seeded(seed)
    x = samples(model, 128)
    optimizers = {p: torch.optim.Adam(model.phase_parameters(p), 5e-3 if p != "critic" else 1e-3) for p in model.phases}
    losses = []
    for step in range(steps):
        batch = x[torch.randint(len(x), (32,), generator=generator)]
        for phase in model.phases:
            optimizers[phase].zero_grad()
            losses.append(float(model.backward(phase, batch, model.draw(phase, 32, generator), step=step).loss))
            optimizers[phase].step()
    return losses


@pytest.mark.parametrize("name", NAMES)
def test_learns_beyond_chance(name: str) -> None:
    model = make(name)
    untrained, _ = model.eval().evaluate(samples(model, 64, seed=11), seeded(5))
    train(model.train(), 150 if name == "predict_self" else 60)
    score, chance = model.eval().evaluate(samples(model, 64, seed=11), seeded(5))
    if model.task.metric == "accuracy":
        assert score > chance + 0.5 * (1 - chance) and score > untrained
    else:
        assert score < 0.8 * chance and score < untrained


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_training(name: str) -> None:
    first, again, other = (train(make(name), 3, seed) for seed in (0, 0, 1))
    assert first == again and first != other
    assert all(map(math.isfinite, first))


@pytest.mark.parametrize("name", NAMES)
def test_a_phase_touches_its_own_parameters(name: str) -> None:
    model = make(name)
    x = samples(model, 4)
    own = {phase: {id(p) for p in model.phase_parameters(phase)} for phase in model.phases}
    assert set().union(*own.values()) == {id(p) for p in model.parameters()}
    assert sum(map(len, own.values())) == len(list(model.parameters()))
    for phase in model.phases:
        model.zero_grad()
        losses = model.backward(phase, x, model.draw(phase, 4, seeded()), scale=0.5)
        assert {id(p) for p in model.parameters() if p.grad is not None and p.grad.any()} <= own[phase]
        assert all(p.grad is not None for p in model.phase_parameters(phase))
        assert float(losses.loss) == pytest.approx(sum(map(float, losses.parts.values())), rel=1e-5)
        halves = [p.grad.clone() for p in model.phase_parameters(phase)]
        model.zero_grad()
        model.backward(phase, x, model.draw(phase, 4, seeded()))
        for half, parameter in zip(halves, model.phase_parameters(phase)):
            torch.testing.assert_close(2 * half, parameter.grad)
    assert all(p.requires_grad for p in model.parameters())


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    model = make("rotation").double()
    x, draws = scenes(8).double(), model.draw("model", 8, seeded())
    model.backward("model", x, draws)
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for part in (slice(0, 4), slice(4, 8)):
        model.backward("model", x[part], {name: rows[part] for name, rows in draws.items()}, scale=0.5)
    for expected, parameter in zip(whole, model.parameters()):
        torch.testing.assert_close(parameter.grad, expected)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = make(name)
    if name == "colorization":
        task = model.task.fit(scenes(16))
        model = PretextModel.from_config(PretextConfig(name, {"prior": task.prior, "stride": 2}, **SMALL))
    model.save(tmp_path)
    loaded = Model.load(tmp_path)
    assert isinstance(loaded, PretextModel) and loaded.task == model.task
    x = samples(model, 4)
    assert loaded.eval().evaluate(x, seeded()) == model.eval().evaluate(x, seeded())
    assert {k: v.tolist() for k, v in loaded.state_dict().items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }


def test_half_precision_images_have_the_same_holes() -> None:
    model = make("missing_patch")
    draws = model.draw("critic", 16, seeded())
    kept = model._draws("critic", scenes(16).bfloat16(), draws, None)
    assert torch.equal(kept["place"], draws["place"])


def test_an_encoder_of_ones_own(tmp_path: Path) -> None:
    encoder = ConvEncoder(8, 3, 4, 2)
    model = PretextModel(encoder, Rotation(), (3, 8, 8))
    assert model.encoder is encoder and model.latent_dim == encoder.num_features
    assert torch.equal(model.latents(scenes(2)), encoder(scenes(2)))
    with pytest.raises(CheckpointError, match=r"encoder\.state_dict\(\)"):
        model.save(tmp_path)


def test_latents_of_every_image_task() -> None:
    for name in NAMES:
        model = make(name)
        assert model.latents(scenes(3)).shape == (3, model.latent_dim)


def test_names_and_defaults() -> None:
    assert set(NAMES) >= {"predict_self", "temporal_order", "missing_patch", "rotation", "colorization", "future"}
    for name, task in tasks().items():
        assert issubclass(task, Task) and task().name == name


def test_what_a_model_refuses() -> None:
    with pytest.raises(ValueError, match="task: got 'jigsaw', expected one of 'predict_self'"):
        PretextConfig("jigsaw")
    with pytest.raises(ValueError, match="image_size: got 10, expected a multiple"):
        PretextConfig("rotation", image_size=10)
    with pytest.raises(TypeError, match="unexpected keyword"):
        PretextModel.from_config(PretextConfig("rotation", {"angles": 3}))
    with pytest.raises(TypeError, match="task: got str"):
        PretextModel(ConvEncoder(8, 3, 4, 2), "rotation", (3, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="power of two"):
        PretextModel(Odd(), tasks()["predict_self"](), (3, 10, 10))
    model = make("rotation")
    with pytest.raises(ValueError, match=r"images: got shape \(2, 1, 8, 8\), expected \[B, 3, 8, 8\] for 'rotation'"):
        model.loss(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="phase: got 'critic'"):
        model.draw("critic", 2)
    with pytest.raises(ValueError, match="has no critic"):
        model.critic_loss(scenes(2))
    with pytest.raises(ValueError, match="draws: got 3 rows of 'turns'"):
        model.loss(scenes(2), draws=model.draw("model", 3))


class Odd(nn.Module):
    num_features, feature_shape = 27, (3, 3, 3)
