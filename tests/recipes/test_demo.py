"""The demo from its arguments to its files, with few steps; and its messages."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from genmod.recipes import data, demo

CPU = torch.device("cpu")
FILES = {"reconstructions.png", "samples.png", "traversal.png", "loss_curves.png", "metrics.json"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(demo, "LARGE", (64, 8))
    with demo._one_thread():
        yield


def main(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return demo.main(parser.parse_args([*arguments, "--device", "cpu"]))


def folder_of_images(path: Path, count: int = 12) -> Path:
    path.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{number}.png")
    return path


def test_writes_its_files_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(2)
    assert main("--data", "digits", "--steps", "6", "--out", str(tmp_path)) == 0
    assert torch.get_num_threads() == 2
    assert {file.name for file in (tmp_path / "digits").iterdir()} == FILES
    for name in FILES - {"metrics.json"}:
        pixels = np.asarray(Image.open(tmp_path / "digits" / name).convert("L"))
        assert min(pixels.shape) > 200
        assert pixels.std() > 10
    metrics = json.loads((tmp_path / "digits" / "metrics.json").read_text())
    assert metrics["steps"] == 6
    for name in ("step_seconds", "sampling_seconds", "step_peak_bytes", "alone_drawn_seconds", "alone_peak_bytes"):
        assert min(metrics[name]["stock"], metrics[name]["genmod"]) > 0
    assert metrics["step_seconds"]["stock"] > metrics["sampling_seconds"]["stock"]
    printed = capsys.readouterr().out
    for words in ("training step, median", "held-out ELBO", "peak memory", "[64, 16]", "[64, 8]", str(tmp_path)):
        assert words in printed.replace("\n", "")


def test_the_two_curves_agree_with_the_same_noise(tmp_path: Path) -> None:
    metrics = demo.run("digits", tmp_path, steps=8, device="cpu")["digits"]
    assert metrics["loss_difference"]["relative"] < 1e-5
    elbo = metrics["held_out_elbo"]
    assert elbo["genmod"] == pytest.approx(elbo["stock"], rel=1e-5)


def test_the_seed_decides_everything() -> None:
    images = data.load("digits")
    plan = demo._plan(images, 5)
    quiet = Console(quiet=True)

    def losses(seed: int) -> dict[str, list[float]]:
        runs = demo.train(images.train, plan, seed, CPU, quiet, "digits")
        return {name: run.losses for name, run in runs.items()}

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_training_improves_on_the_held_out_images() -> None:
    images = data.load("digits")
    plan = demo._plan(images, 40)
    runs = demo.train(images.train, plan, 0, CPU, Console(quiet=True), "digits")
    untrained = demo._start(demo.StockSampler(), plan, 0, CPU).model
    before = demo.held_out_elbo(untrained, images.test, 0)
    assert demo.held_out_elbo(runs["genmod"].model, images.test, 0) > before + 100


def test_own_images(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "my images")
    assert main("--data", str(folder), "--steps", "2", "--out", str(tmp_path / "out")) == 0
    assert {file.name for file in (tmp_path / "out" / "my_images").iterdir()} == FILES


def test_two_images_are_enough(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "two", count=2)
    assert main("--data", str(folder), "--steps", "1", "--out", str(tmp_path / "out")) == 0


@pytest.mark.parametrize("case", ["empty folder", "text only", "no such folder"])
def test_no_images_is_code_2_and_writes_nothing(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    if case != "no such folder":
        folder.mkdir()
    if case == "text only":
        (folder / "notes.txt").write_text("text")
    out = tmp_path / "out"
    assert main("--data", str(folder), "--out", str(out)) == 2
    assert not out.exists()
    message = capsys.readouterr().err
    assert message.startswith("genmod demo: --data: no ")
    assert "wanted: 'digits'" in message


def test_out_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("kept")
    assert main("--data", "digits", "--steps", "1", "--out", str(tmp_path / "out")) == 2
    assert "--out: cannot write to" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "kept"


@pytest.mark.parametrize("steps", ["0", "-1", "many"])
def test_bad_steps(steps: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main("--steps", steps)
    assert stop.value.code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = argparse.Namespace(data="digits", out=tmp_path / "out", seed=0, steps=1, device="cuda")
    assert demo.main(arguments) == 2
    assert "--device cuda: PyTorch sees no CUDA GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("module", ["rich", "matplotlib", "sklearn"])
def test_missing_packages_are_named(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert main("--data", "digits", "--steps", "1", "--out", str(tmp_path / "out")) == 2
    assert f"{module!r}; install it with: pip install 'genmod-torch[train]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_import_needs_none_of_them() -> None:
    extras = ("rich", "matplotlib", "sklearn", "skimage", "PIL")
    code = f"import sys, genmod.recipes.demo; print(*{set(extras)!r} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_nan_stops_the_training() -> None:
    images = data.ImageSet("broken", torch.full((8, 1, 8, 8), torch.nan), 2)
    with pytest.raises(demo.RecipeError, match="model's loss is nan at step 1"):
        demo.train(images.train, demo._plan(images, 3), 0, CPU, Console(quiet=True), "broken")


def test_peak_memory_counts_what_lives_at_once() -> None:
    def call() -> None:
        for _ in range(3):
            torch.ones(1000).add(1).sum()

    # ones and its sum with 1 live together, and the one of the next turn while the name is bound to neither.
    assert 8000 <= demo.peak_bytes(call, CPU) <= 8000 + 256
