"""The training loop: the same curve from the same seed, however it is computed, interrupted or resumed."""

from __future__ import annotations

import dataclasses
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from genmod import models
from genmod.models import Autoencoder, AutoencoderConfig
from genmod.models.base import CheckpointError, Draws, Losses
from genmod.recipes import RecipeError
from genmod.recipes.batches import Batches, seed_of
from genmod.recipes.checkpoint import Checkpoints, SaveError, model_folder
from genmod.recipes.trainer import Diverged, Result, TrainConfig, Trainer, train

IMAGES = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
CONFIG = TrainConfig(steps=12, batch=8, save_every=4)
SMALL = AutoencoderConfig(image_size=8, channels=1, latent_dim=4, width=4, stages=1, objective="denoising")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(kind: type[Autoencoder] = Autoencoder, config: AutoencoderConfig = SMALL) -> Autoencoder:
    torch.manual_seed(0)
    return kind(config)


def run(model: Any = None, config: TrainConfig = CONFIG, **options: Any) -> Result:
    options = {"log": False, "device": "cpu", "report": lambda _: None, **options}
    return train(make() if model is None else model, IMAGES, config, **options)


def with_(**changes: Any) -> TrainConfig:
    return dataclasses.replace(CONFIG, **changes)


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------------------------------- batches


def test_every_epoch_has_every_image_once_in_another_order() -> None:
    batches = Batches(10, 4, seed=3)
    indices = torch.cat([batches[number] for number in range(5)])
    assert sorted(indices[:10].tolist()) == sorted(indices[10:].tolist()) == list(range(10))
    assert indices[:10].tolist() != indices[10:].tolist()
    assert torch.equal(batches[1], Batches(10, 4, seed=3)[1])
    assert Batches(3, 8, seed=0)[0].bincount().tolist() != [8, 0, 0]


def test_seeds_of_different_uses_differ() -> None:
    seeds = {seed_of(use, seed, step) for use in range(3) for seed in range(5) for step in range(20)}
    assert len(seeds) == 300
    assert max(seeds) < 2**63


# --------------------------------------------------------------------------------------------------------- determinism


def test_the_seed_decides_the_curve_and_the_weights() -> None:
    first, second = run(config=with_(ema=0.9)), run(config=with_(ema=0.9))
    assert first.curve == second.curve
    assert same(weights(first.model), weights(second.model))
    assert run(config=with_(seed=1)).curve != first.curve


def test_training_lowers_the_loss_and_leaves_the_callers_random_state_alone() -> None:
    model = make()
    before = torch.get_rng_state()
    curve = run(model, with_(steps=60, learning_rate=1e-2)).curve["model"]
    assert torch.equal(torch.get_rng_state(), before)
    assert len(curve) == 60
    assert sum(curve[-10:]) < 0.99 * sum(curve[:10])  # the images are noise: little of them fits into 4 numbers


def test_parts_of_a_batch_add_up_to_the_batch() -> None:
    whole, parts = run(), run(config=with_(accumulate=4))
    assert parts.curve["model"] == pytest.approx(whole.curve["model"], rel=1e-5)
    for one, other in zip(weights(whole.model), weights(parts.model), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)  # Adam divides small gradients by their size


def test_bf16_trains_close_to_float32() -> None:
    full, half = run(), run(config=with_(precision="bf16"))
    assert half.curve != full.curve
    assert half.curve["model"] == pytest.approx(full.curve["model"], rel=2e-2)
    assert all(parameter.dtype == torch.float32 for parameter in half.model.parameters())


def test_averaged_weights_lag_behind() -> None:
    model = make()
    start = weights(model)
    averaged = run(model, with_(ema=0.99)).model
    assert averaged is not model
    assert not averaged.training
    distance = [
        sum(float((a - b).norm()) for a, b in zip(start, weights(each), strict=True)) for each in (averaged, model)
    ]
    assert 0 < distance[0] < distance[1]


def test_cosine_ends_at_zero_and_rates_may_differ_by_phase() -> None:
    trainer = Trainer(make(), IMAGES, with_(schedule="cosine", learning_rate={"model": 0.5}), device="cpu")
    assert trainer._rate("model", 0) == 0.5
    assert trainer._rate("model", 6) == pytest.approx(0.25)
    assert trainer._rate("model", 12) == 0
    with pytest.raises(RecipeError, match="learning_rate"):
        Trainer(make(), IMAGES, with_(learning_rate={"critic": 0.5}), device="cpu")


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"steps": 0}, "steps"), ({"batch": 0}, "batch"), ({"seed": -1}, "seed"), ({"schedule": "exp"}, "schedule"),
     ({"ema": 1.0}, "ema"), ({"accumulate": 3}, "accumulate")],
)  # fmt: skip
def test_a_bad_setting_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=f"^{named}: got"):
        with_(**changes)


def test_float16_and_unknown_devices_are_refused() -> None:
    with pytest.raises(RecipeError, match="precision: got 'fp16', expected 'no' or 'bf16'"):
        run(config=with_(precision="fp16"))
    with pytest.raises(RecipeError, match="device: got 'tpu'"):
        run(device="tpu")
    with pytest.raises(RecipeError, match="images: got none"):
        train(make(), IMAGES[:0], CONFIG, device="cpu")


# -------------------------------------------------------------------------------------------------------------- resume


class Signalled(Autoencoder):
    """Sends its own process a signal while step 6 is computed."""

    number = signal.SIGINT
    times = 1

    def loss(self, images: torch.Tensor, *, step: int = 0, **options: Any) -> Losses:
        if step == 5 and self.times:
            self.times -= 1
            signal.raise_signal(self.number)
        return super().loss(images, step=step, **options)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, also where these tests run as a background job, which a shell starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ctrl_c_saves_and_a_resumed_run_has_the_same_curve(tmp_path: Path, accumulate: int) -> None:
    config = with_(ema=0.9, accumulate=accumulate)
    straight = run(config=config)
    with pytest.raises(KeyboardInterrupt):
        run(make(Signalled), config, out=tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [6]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    _rename(tmp_path, "Signalled", "Autoencoder")
    again = run(config=config, out=tmp_path, resume=True)
    assert again.curve == straight.curve
    assert same(weights(again.model), weights(straight.model))
    assert same(weights(models.load(model_folder(tmp_path))), weights(straight.model))


def _rename(out: Path, old: str, new: str) -> None:
    """What the class of the model in a run's checkpoint is called."""
    for path in (out / "checkpoints").rglob("config.json"):
        path.write_text(path.read_text().replace(old, new))


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Signalled, "times", 2)
    with pytest.raises(KeyboardInterrupt):
        run(make(Signalled), with_(accumulate=2), out=tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4]


def test_sigterm_ends_with_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Signalled, "number", signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run(make(Signalled), out=tmp_path)
    assert ended.value.code == 143
    assert Checkpoints(tmp_path / "checkpoints").steps() == [6]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from test_trainer import run, with_
out, chance = Path(sys.argv[1]), random.Random(0)
config = with_(steps=40, save_every=2)
straight = run(config=config)
kills = 0
while kills < 4:
    child = os.fork()
    if not child:
        run(config=config, out=out, resume=True)
        os._exit(0)
    time.sleep(chance.uniform(0.02, 0.15))
    os.kill(child, signal.SIGKILL)
    kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    if kills == 0: raise SystemExit("the run was over before it was killed")
    if (out / "checkpoints/step-00000040").exists(): break
again = run(config=config, out=out, resume=True)
assert again.curve == straight.curve
assert len(list((out / "checkpoints").iterdir())) == 1
"""


def test_killed_at_random_moments_and_resumed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_longer_than_at_first(tmp_path: Path) -> None:
    run(out=tmp_path)
    longer = run(config=with_(steps=20), out=tmp_path, resume=True)
    assert longer.curve == run(config=with_(steps=20)).curve


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run(out=tmp_path)
    with pytest.raises(RecipeError, match="go on with --resume"):
        run(out=tmp_path)


def test_resume_without_a_checkpoint_says_so_and_starts(tmp_path: Path) -> None:
    lines: list[str] = []
    assert run(out=tmp_path, resume=True, report=lines.append).curve == run().curve
    assert "no checkpoint yet" in lines[0]


# ----------------------------------------------------------------------------------------------------- bad checkpoints


@pytest.mark.parametrize(
    ("config", "model", "named"),
    [
        (CONFIG, dataclasses.replace(SMALL, latent_dim=5), "latent_dim"),
        (with_(seed=1), SMALL, "seed = 0, this one has 1"),
        (with_(batch=4), SMALL, "batch"),
        (with_(precision="bf16"), SMALL, "precision"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(
    tmp_path: Path, config: TrainConfig, model: AutoencoderConfig, named: str
) -> None:
    run(out=tmp_path)
    with pytest.raises(CheckpointError, match=named):
        run(make(config=model), config, out=tmp_path, resume=True)


def test_a_checkpoint_of_other_images_is_refused(tmp_path: Path) -> None:
    run(out=tmp_path)
    with pytest.raises(CheckpointError, match="images"):
        train(make(), 1 - IMAGES, CONFIG, out=tmp_path, resume=True, device="cpu", log=False)


class Trap:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("unpickled",))


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
@pytest.mark.parametrize("content", ["cut off", "pickle", "missing"])
def test_damaged_files_and_pickles_are_refused(
    tmp_path: Path, name: str, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(config=with_(steps=1), out=tmp_path)
    path = tmp_path / "checkpoints/step-00000001" / name
    if content == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-10] if content == "cut off" else pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=name):
        run(config=with_(steps=1), out=tmp_path, resume=True)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"step": null}', "{"])
def test_damaged_json_is_refused(tmp_path: Path, content: str) -> None:
    run(config=with_(steps=1), out=tmp_path)
    (tmp_path / "checkpoints/step-00000001/training.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"training\.json is damaged"):
        run(config=with_(steps=1), out=tmp_path, resume=True)


# ----------------------------------------------------------------------------------------------------------- full disk


@pytest.fixture
def full_disk() -> Iterator[Any]:
    """Called, no file can grow beyond 2000 bytes any more; called with False, it can again."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def change(full: bool = True) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]) if full else limits)

    yield change
    change(False)


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path: Path, full_disk: Any) -> None:
    run(config=with_(steps=4), out=tmp_path)
    full_disk()
    lines: list[str] = []
    with pytest.raises(SaveError, match=r"cannot save step 12 .* is whole: .*step-00000004"):
        run(out=tmp_path, resume=True, report=lines.append)
    full_disk(False)
    assert "training goes on" in lines[-1]  # at step 8: space could have been made until step 12
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    assert run(out=tmp_path, resume=True).curve == run().curve


def test_a_full_disk_at_the_first_checkpoint(tmp_path: Path, full_disk: Any) -> None:
    full_disk()
    with pytest.raises(SaveError, match="there is no checkpoint before it"):
        run(config=with_(steps=2), out=tmp_path)


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match="cannot save step 2"):
        run(config=with_(steps=2), out=tmp_path / "file")


# ----------------------------------------------------------------------------------------------------------------- NaN


class Diverging(Autoencoder):
    """Loses its loss at step 7."""

    def loss(self, images: torch.Tensor, *, step: int = 0, draws: Draws | None = None, **options: Any) -> Losses:
        losses = super().loss(images, step=step, draws=draws, **options)
        return losses._replace(loss=losses.loss * float("nan")) if step == 6 else losses


class Overflowing(Autoencoder):
    """Has a finite loss at step 8 whose gradient is not."""

    def loss(self, images: torch.Tensor, *, step: int = 0, draws: Draws | None = None, **options: Any) -> Losses:
        losses = super().loss(images, step=step, draws=draws, **options)
        zero = (self.to_latent.bias * 0).sum()
        return losses._replace(loss=losses.loss + torch.sqrt(zero)) if step == 7 else losses


@pytest.mark.parametrize(("kind", "step"), [(Diverging, 7), (Overflowing, 8)])
def test_nan_stops_with_the_step_and_keeps_the_batch(tmp_path: Path, kind: type[Autoencoder], step: int) -> None:
    with pytest.raises(Diverged, match=f"at step {step}; its batch is .*step-00000004") as stopped:
        run(make(kind), out=tmp_path)
    assert stopped.value.exit_code == 3
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4]
    kept = load_file(tmp_path / f"diverged/step-{step:08d}.safetensors")
    trainer = Trainer(make(), IMAGES, CONFIG, device="cpu")
    images, draws = trainer.batch(step - 1, 0)
    assert torch.equal(kept["0.model.images"], images)
    assert torch.equal(kept["0.model.noise"], draws["noise"])
    assert (tmp_path / f"diverged/step-{step:08d}.png").stat().st_size > 1000


def test_nan_without_a_folder_names_the_step() -> None:
    with pytest.raises(Diverged, match="the model loss is nan at step 7"):
        run(make(Diverging))
