"""The commands from their arguments to their files, with few steps; and their messages."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genmod.cli import main
from genmod.recipes import metrics, presets, pretext_results, results, trainer
from genmod.recipes.data import ImageSet, digits


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(out: Path, recipe: str, *options: str) -> int:
    common = ["--steps", "20", "--batch", "16", "--out", str(out), "--device", "cpu"]
    return main(["train", recipe, *common, *options])


def picture(path: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("L"))
    assert min(pixels.shape) > 150
    assert pixels.std() > 5
    return pixels


@pytest.mark.parametrize("recipe", list(presets.RECIPES))
def test_every_recipe_learns(recipe: str) -> None:
    images = digits()
    torch.manual_seed(0)
    model = presets.build(recipe, images, width=4, latent_dim=4)
    config = presets.training(recipe, images, steps=12, batch=16)
    before = [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]
    curve = trainer.train(model, images.train, config, device="cpu").curve
    assert all(len(losses) == 12 for losses in curve.values())
    after = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A critic's last bias moves real and fake values alike, which no loss of their difference sees.
    assert sum(torch.equal(a, b) for a, b in zip(before, after, strict=True)) <= (1 if "critic" in curve else 0)
    if set(curve) == {"model"} and recipe not in ("annealed-vae", "capacity-vae"):  # whose loss is another at each step
        assert sum(curve["model"][-3:]) < sum(curve["model"][:3])


@pytest.mark.parametrize("recipe", ["ae", "beta-tcvae", "wgan-gp"])
def test_a_recipe_draws_and_tells(tmp_path: Path, recipe: str) -> None:
    assert train(tmp_path, recipe, "--no-metrics") == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["training"]["steps"] == 20
    assert 0 < found["data_share"] < 1
    assert found["step_seconds"] > 0
    picture(tmp_path / "samples.png")
    picture(tmp_path / "losses.png")
    assert list((tmp_path / "logs").glob("events.*"))
    if recipe == "wgan-gp":
        assert set(found["final_loss"]) == {"critic", "generator"}
    else:
        assert found["measured"]["mse"] < 0.3
        picture(tmp_path / "reconstructions.png")
        picture(tmp_path / "traversal.png")


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps."""
    out = tmp_path_factory.mktemp("vae")
    assert train(out, "vae", "--ema", "0.5") == 0
    return out


@pytest.fixture(scope="module")
def gan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GAN of 20 steps."""
    out = tmp_path_factory.mktemp("gan")
    assert train(out, "r3gan", "--no-metrics") == 0
    return out


def test_the_numbers_of_a_run(vae: Path) -> None:
    found = json.loads((vae / "metrics.json").read_text())["measured"]
    assert found["fid"] > found["real_fid"] > 0
    assert 0 <= found["precision"] <= 1
    assert found["nelbo"] > found["kl"] > 0


@pytest.mark.parametrize("arguments", [
    ["sample"], ["reconstruct"], ["traverse"], ["map"], ["map", "--method", "tsne", "--number", "40"], ["interpolate"],
    ["interpolate", "--data", "digits", "--path", "lerp", "--rows", "3"],
])  # fmt: skip
def test_a_trained_model_is_drawn(vae: Path, tmp_path: Path, arguments: list[str]) -> None:
    first, again = tmp_path / "first.png", tmp_path / "deeper" / "again.png"
    for out in (first, again):
        assert main([arguments[0], str(vae), *arguments[1:], "--out", str(out)]) == 0
    assert (picture(first) == picture(again)).all()


def test_a_checkpoint_and_its_run_are_the_same_model(vae: Path, tmp_path: Path) -> None:
    newest = next((vae / "checkpoints").iterdir())
    for name, folder in (("run", vae), ("checkpoint", newest / "ema")):
        assert main(["sample", str(folder), "--out", str(tmp_path / f"{name}.png")]) == 0
    assert (picture(tmp_path / "run.png") == picture(tmp_path / "checkpoint.png")).all()


def test_probe(vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(vae), "--out", str(tmp_path / "probe.json")]) == 0
    found = json.loads((tmp_path / "probe.json").read_text())
    for column in found.values():
        assert column["linear, 100% of the labels"] > 0.7
        assert column["linear, 100% of the labels"] > column["linear, 1% of the labels"]
    assert found["trained"] != found["random"]
    assert "linear, 5% of the labels" in capsys.readouterr().out


TASKS = ["predict-self", "temporal-order", "missing-patch", "rotation", "future", "next-step"]


@pytest.mark.parametrize("task", TASKS)
def test_every_pretext_task_trains(tmp_path: Path, task: str) -> None:
    common = ["--steps", "5", "--batch", "8", "--out", str(tmp_path), "--device", "cpu"]
    assert main(["pretext", task, *common]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert any(name.startswith("held-out") for name in found["measured"])
    picture(tmp_path / "losses.png")
    if task == "rotation":
        assert main(["probe", str(tmp_path)]) == 0


def test_colorization_wants_colour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretext", "colorization", "--steps", "2", "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "genmod pretext: colorization: " in capsys.readouterr().err
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    common = ["--data", str(folder), "--size", "16", "--steps", "2", "--batch", "4", "--out", str(tmp_path / "run")]
    assert main(["pretext", "colorization", *common, "--device", "cpu"]) == 0
    # Rare colours weigh more: how rare they are was measured on the training images, and is kept with the model.
    prior = json.loads((tmp_path / "run" / "metrics.json").read_text())["model"]["options"]["prior"]
    assert len(prior) == 313 and sum(prior) == pytest.approx(1) and len(set(prior)) > 10
    assert main(["pretext", "colorization", *common, "--device", "cpu", "--resume"]) == 0


def test_resume(tmp_path: Path) -> None:
    assert train(tmp_path / "straight", "wae", "--no-metrics") == 0
    assert train(tmp_path / "halves", "wae", "--no-metrics", "--steps", "9") == 0
    assert train(tmp_path / "halves", "wae", "--no-metrics", "--resume") == 0
    losses = [json.loads((tmp_path / run / "metrics.json").read_text())["final_loss"] for run in ("straight", "halves")]
    assert losses[0] == losses[1]


# ------------------------------------------------------------------------------------------------------------ messages


def error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "nowhere"], "no such file or folder: nowhere; wanted: 'digits'"),
        (["--data", "digits", "--size", "10"], "images of 10 x 10 pixels: wanted a multiple of 4"),
        (["--size", "2"], "--size: got 2"),
        (["--accumulate", "3"], "accumulate: got 3, expected a divisor of the batch"),
        (["--ema", "1"], "ema: got 1.0"),
    ],
)
def test_what_can_be_put_right_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    message = error(["train", "ae", "--out", str(tmp_path), "--device", "cpu", *options], capsys)
    assert message.startswith("genmod train: ")
    assert said in message


@pytest.mark.parametrize("option", [["--steps", "0"], ["--seed", "-1"], ["--steps", "x"], ["--learning-rate", "0"],
                                    ["--precision", "fp8"]])  # fmt: skip
def test_bad_options_end_with_2(option: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "ae", *option])
    assert ended.value.code == 2


def test_a_run_is_not_overwritten(vae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "go on with --resume" in error(["train", "vae", "--out", str(vae), "--device", "cpu"], capsys)
    assert "belongs to a run with" in error(
        ["train", "vae", "--out", str(vae), "--resume", "--seed", "3", "--device", "cpu"], capsys
    )


def test_what_is_no_model_is_refused(tmp_path: Path, vae: Path, gan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no checkpoint" in error(["sample", str(tmp_path)], capsys)
    (tmp_path / "model.pt").write_bytes(pickle.dumps({}))
    assert "is a pickle" in error(["sample", str(tmp_path / "model.pt")], capsys)
    assert "holds a pickle, model.pt" in error(["map", str(tmp_path)], capsys)
    assert "GAN, which has no encoder" in error(["reconstruct", str(gan)], capsys)
    assert "GAN, which has no encoder" in error(["probe", str(gan)], capsys)
    assert "the model takes 1" in error(["map", str(vae), "--data", "photos"], capsys)
    assert "ends with .png" in error(["sample", str(vae), "--out", str(tmp_path / "a.jpg")], capsys)
    (tmp_path / "file").touch()
    assert "cannot write" in error(["sample", str(vae), "--out", str(tmp_path / "file" / "a.png")], capsys)


def test_a_loss_that_is_no_number_ends_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = torch.full((20, 1, 8, 8), torch.nan)
    monkeypatch.setattr("genmod.recipes.data.load", lambda *_, **__: ImageSet("broken", broken, 2))
    assert train(tmp_path, "vae", "--no-metrics") == 3
    assert "the model loss is nan at step 1; its batch is" in capsys.readouterr().err
    assert (tmp_path / "diverged" / "step-00000001.safetensors").exists()


# ------------------------------------------------------------------------------------------------------------- metrics


def test_precision_and_recall_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    # The nearest other is 1 away: the real manifold is [-1, 4]; each fake ball is as wide as the gap beside it.
    fake = torch.tensor([[0.5], [0.6], [10.0], [14.0]])
    precision, recall = metrics.precision_recall(real, fake, neighbours=1)
    assert precision == 0.5
    assert recall == 0.0
    assert metrics.precision_recall(real, real, 1) == (1.0, 1.0)
    with pytest.raises(ValueError, match="fake: got shape"):
        metrics.precision_recall(real, fake[:1], 1)


def test_quality_tells_real_from_noise_and_is_reproducible() -> None:
    images = digits().images[:200]
    labels = (images.mean((1, 2, 3)) > images.mean()).long()
    extractor = metrics.feature_extractor(images, labels, steps=20)
    again = metrics.feature_extractor(images, labels, steps=20)
    assert torch.equal(extractor(images[:4]), again(images[:4]))
    half, other = images.chunk(2)
    good = metrics.quality(half, other, extractor)
    bad = metrics.quality(half, torch.rand(100, 1, 8, 8), extractor)
    assert bad.fid > 2 * good.fid
    assert bad.kid > good.kid
    assert bad.precision < good.precision
    assert metrics.quality(half, other, extractor) == good
    assert metrics.feature_extractor(images, None, steps=2)(images[:3]).shape == (3, 64)


def test_the_table_of_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        {"recipe": "ae", "seed": seed, "steps": 5, "mse": mse, "fid": 3.0, "kid": 0.1, "precision": 0.5, "recall": 1.0,
         "seconds": 9.0}
        for seed, mse in enumerate((0.01, 0.03))
    ]  # fmt: skip
    (tmp_path / "runs.json").write_text(json.dumps({"runs": runs}))
    assert results.main(["table", str(tmp_path / "runs.json")]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| `ae` | 5 | 2 | 0.0200 ± 0.0141 |  |  | 3.0 ± 0.0 |")


def test_results_of_pretext_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = presets.training
    monkeypatch.setattr(pretext_results, "training", lambda *args, **new: training(*args, **{**new, "steps": 2}))
    path = tmp_path / "runs.json"
    tasks = ["rotation", "colorization", "next_step"]  # the digits have no colours
    for seeds in (["0"], ["0", "1"]):
        assert pretext_results.main([str(path), "--tasks", *tasks, "--seeds", *seeds]) == 0
    runs = json.loads(path.read_text())["runs"]
    assert [(run["task"], run["seed"]) for run in runs] == [(t, s) for s in (0, 1) for t in ("rotation", "next_step")]
    for run in runs:
        assert run["chance"] == pytest.approx(0.25 if run["task"] == "rotation" else 0.088, abs=0.001)
        assert 0 < run["data_share"] < 1
    assert 0 < runs[0]["accuracy"] < 1 and 0 < runs[1]["error"] < 1
    rows = capsys.readouterr().out.splitlines()
    assert rows[-2].startswith("| `rotation` | 2 | 2 | ") and rows[-1].startswith("| `next_step` | 2 | 2 |  | 0.")


def test_results_are_not_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = presets.training
    monkeypatch.setattr(results, "training", lambda *args, **changes: training(*args, **{**changes, "steps": 3}))
    path = tmp_path / "runs.json"
    for _ in range(2):
        assert results.main(["run", str(path), "--recipes", "vae", "--seeds", "0"]) == 0
    found = json.loads(path.read_text())["runs"]
    assert [(run["recipe"], run["seed"], run["steps"]) for run in found] == [("vae", 0, 3)]
    assert found[0]["nelbo"] > found[0]["kl"] > 0
