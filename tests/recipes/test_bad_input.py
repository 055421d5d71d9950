"""Everything bad that a user can hand to the commands: one message, its exit code, and nothing lost."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genmod import models
from genmod.cli import main
from genmod.recipes.checkpoint import Checkpoints
from genmod.recipes.data import ImageSet


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(out: Path, *options: str) -> int:
    usual = ["--steps", "4", "--batch", "4", "--device", "cpu", "--no-metrics", "--out", str(out)]
    return main(["train", "vae", *usual, *options])


def image_folder(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    out = tmp_path_factory.mktemp("run") / "vae"
    assert train(out) == 0
    return out


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    """Called with a number, no file can grow beyond so many bytes any more, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_unknown_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["train", "ae"], ["pretext", "rotation"]):
        assert main([*command, "--data", "digit", "--out", str(tmp_path / "out")]) == 2
        assert "no such file or folder: digit; wanted: 'digits', 'photos', 'shapes'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_empty_corrupt_and_huge_images_are_named_counted_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = image_folder(tmp_path / "images")
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:60])
    Image.new("1", (10_000, 10_000)).save(folder / "bomb.png")
    assert train(tmp_path / "out", "--data", str(folder), "--size", "16") == 0
    said = capsys.readouterr().out
    for name, why in (("empty.png", ""), ("cut.png", ""), ("bomb.png", "decompression bomb")):
        assert f"skipped {folder / name}: " in said and why in said
    assert "skipped 3 broken or refused image files, read 6" in said
    assert json.loads((tmp_path / "out/metrics.json").read_text())["data"]["shape"] == [6, 3, 16, 16]


def test_no_image_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "empty.png").touch()
    assert train(tmp_path / "out", "--data", str(tmp_path / "images")) == 2
    assert "1 broken or refused images" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["4", "10", "513"])
def test_a_size_that_a_model_cannot_take(tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
    for command in (["train", "dcgan"], ["pretext", "missing-patch"]):
        assert main([*command, "--size", size, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
        assert size in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "GAN"}, "config that GAN does not take"),
        ({"model": "Diffusion"}, "holds a model of class Diffusion"),
        ({"format": 2}, "has format 2"),
        ({"config": {"image_size": 8, "channels": 1, "latent_dim": 5, "width": 32, "stages": 2}}, "shape"),
    ],
    ids=["another class", "an unknown class", "another version", "another configuration"],
)
def test_a_checkpoint_of_another_model_or_version(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], message: str
) -> None:
    out = shutil.copytree(run, tmp_path / "copy")
    path = out / "checkpoints/step-00000004/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert main(["sample", str(out), "--out", str(tmp_path / "a.png")]) == 2
    assert message in capsys.readouterr().err
    assert train(out, "--resume", "--steps", "8") == 2
    assert not (tmp_path / "a.png").exists()
    assert Checkpoints(out / "checkpoints").steps() == [4]


def test_a_run_of_another_recipe_is_not_gone_on_with(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "dcgan", "--device", "cpu", "--batch", "4", "--out", str(run), "--resume"]) == 2
    assert "belongs to a run with" in capsys.readouterr().err


class Trap:
    """Unpickled, it would say so."""

    sprung = False

    def __reduce__(self) -> tuple[object, ...]:
        return setattr, (Trap, "sprung", True)


@pytest.mark.parametrize("command", ["sample", "reconstruct", "traverse", "interpolate", "map", "probe"])
def test_a_pickle_is_refused_and_never_read(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Trap()))
    assert main([command, str(path)]) == 2
    assert "is a pickle" in capsys.readouterr().err
    torch.save({"weights": Trap()}, tmp_path / "model.safetensors")
    shutil.copy(tmp_path / "model.safetensors", path)
    assert main([command, str(path)]) == 2
    assert "is a pickle" in capsys.readouterr().err
    assert not Trap.sprung


def test_a_pickle_in_a_run_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("model.safetensors", "training.safetensors"):
        out = shutil.copytree(run, tmp_path / name)
        (out / "checkpoints/step-00000004" / name).write_bytes(pickle.dumps(Trap()))
        assert train(out, "--resume", "--steps", "8") == 2
        assert "pickle" in capsys.readouterr().err
    assert not Trap.sprung


def test_a_disk_full_of_checkpoints(
    run: Path, tmp_path: Path, limit: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    before = models.load(out / "checkpoints/step-00000004").state_dict()
    limit(100_000)  # which logs and pictures keep below
    assert train(out, "--resume", "--steps", "8", "--save-every", "2") == 2
    said = capsys.readouterr()
    assert "cannot save step 6" in said.out and "training goes on" in said.out
    assert "cannot save step 8" in said.err and "step-00000004" in said.err
    after = models.load(out / "checkpoints/step-00000004").state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    limit(resource.RLIM_INFINITY)
    assert train(out, "--resume", "--steps", "8") == 0


@pytest.mark.parametrize("command", [["train", "ae", "--no-metrics"], ["pretext", "rotation"]])
def test_a_disk_full_of_logs_and_pictures(
    command: list[str],
    tmp_path: Path,
    limit: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither stops the training, whose checkpoint is whole; the pictures that are missing are an error."""
    monkeypatch.setattr(Checkpoints, "save", unlimited(Checkpoints.save, limit, 300))
    limit(300)
    hook = threading.excepthook
    assert main([*command, "--steps", "60", "--batch", "4", "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out.count("cannot write logs in") == 1
    assert "cannot write pictures and numbers to" in said.err and "Traceback" not in said.err
    assert Checkpoints(tmp_path / "out" / "checkpoints").steps() == [60]
    assert threading.excepthook is hook


def unlimited(call: Callable[..., Path], limit: Callable[[int], None], size: int) -> Callable[..., Path]:
    """`call` with room on the disk, and afterwards without."""

    def with_room(*args: object) -> Path:
        limit(resource.RLIM_INFINITY)
        try:
            return call(*args)
        finally:
            limit(size)

    return with_room


def test_a_loss_that_is_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = torch.rand(20, 1, 8, 8)
    broken[7] = torch.nan
    monkeypatch.setattr("genmod.recipes.data.load", lambda *_, **__: ImageSet("broken", broken, 2))
    for command in (["train", "vae", "--no-metrics"], ["train", "r3gan", "--no-metrics"], ["pretext", "predict-self"]):
        out = tmp_path / command[1]
        assert main([*command, "--steps", "9", "--batch", "9", "--device", "cpu", "--out", str(out)]) == 3
        said = capsys.readouterr().err
        assert "loss is nan at step " in said and "its batch is" in said
        (saved,) = (out / "diverged").glob("*.safetensors")
        assert str(saved) in said
