"""Saving and loading: bit for bit, all or nothing, and no other file than what it should be."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from genmod import models
from genmod.models import GAN, VAE, Autoencoder, AutoencoderConfig, CheckpointError, GANConfig, VAEConfig, checkpoint

SMALL = {"image_size": 8, "channels": 1, "latent_dim": 3, "width": 4, "stages": 2}
MODELS = {
    "autoencoder": lambda: Autoencoder(AutoencoderConfig(**SMALL, objective="denoising")),
    "vae": lambda: VAE(VAEConfig(**SMALL, objective="beta_tc", dataset_size=100)),
    "gan": lambda: GAN(GANConfig(**SMALL, objective="wgan_gp")),
}


def autoencoder(seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder(AutoencoderConfig(**SMALL))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_bit_equal(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    images = torch.rand(6, 1, 8, 8)
    for phase in model.phases:  # a step, so that statistics and averages are not those of the beginning
        model.backward(phase, images, model.draw(phase, 6, torch.Generator().manual_seed(1)))
    model.save(tmp_path / "new" / "folder")
    loaded = models.load(tmp_path / "new" / "folder")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))
    first, again = (m.eval().sample(4, torch.Generator().manual_seed(2)) for m in (model, loaded))
    assert torch.equal(first, again)
    assert set(contents(tmp_path / "new" / "folder")) == {"model.safetensors", "config.json"}


def test_channels_last_weights_are_saved(tmp_path: Path) -> None:
    model = autoencoder().to(memory_format=torch.channels_last)
    model.save(tmp_path)
    loaded = Autoencoder.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))


def test_the_header_says_what_it_is(tmp_path: Path) -> None:
    autoencoder().save(tmp_path)
    header = json.loads((tmp_path / "config.json").read_text())
    assert header["model"] == "Autoencoder"
    assert header["format"] == checkpoint.FORMAT
    assert AutoencoderConfig(**header["config"]) == autoencoder().config


# ------------------------------------------------------------------------------------------------------- wrong files


def test_another_model(tmp_path: Path) -> None:
    autoencoder().save(tmp_path)
    with pytest.raises(CheckpointError, match="holds a model of class Autoencoder, expected VAE"):
        VAE.load(tmp_path)


def edit(folder: Path, **changes: Any) -> None:
    header = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**header, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2, "genmod": "9.0"}, "has format 2, written by genmod 9.0; this one reads format 1"),
        ({"model": "Transformer"}, "class Transformer, expected one of .*Autoencoder.*GAN.*VAE"),
        ({"model": "os.system"}, "class os.system, expected one of"),
        ({"model": 7}, "not the header of a checkpoint"),
        ({"config": {**SMALL, "depth": 3}}, "config that Autoencoder does not take: .*depth"),
        ({"config": {**SMALL, "width": "wide"}}, "config that Autoencoder does not take: width: got 'wide'"),
        ({"config": {**SMALL, "width": 8}}, r"holds another model.* has shape \(4,\), expected \(8,\)|has shape"),
        ({"config": {**SMALL, "stages": 1}}, "holds another model than config.json describes: it also has"),
        ({"config": {**SMALL, "stages": 3}}, "holds another model than config.json describes: it lacks"),
        # Found out before a terabyte is asked for.
        ({"config": {**SMALL, "width": 2**20}}, "holds another model"),
    ],
    ids=str,
)
def test_headers_that_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    autoencoder().save(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        models.load(tmp_path)


@pytest.mark.parametrize("broken", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00"])
def test_a_damaged_header(broken: bytes, tmp_path: Path) -> None:
    autoencoder().save(tmp_path)
    (tmp_path / "config.json").write_bytes(broken)
    with pytest.raises(CheckpointError, match=r"config\.json is"):
        models.load(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "half", "noise", "huge header", "missing"])
def test_damaged_weights(damage: str, tmp_path: Path) -> None:
    autoencoder().save(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    broken = {"empty": b"", "half": whole[: len(whole) // 2], "noise": b"\x01" * 5000, "huge header": b"\xff" * 64}
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(broken[damage])
    with pytest.raises(CheckpointError, match="is not there" if damage == "missing" else "is damaged"):
        models.load(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is no checkpoint .*wanted: a folder with config\.json and"):
        models.load(tmp_path / "nowhere")


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["pickle", "torch.save", "old torch.save", "raw pickle, no suffix"])
@pytest.mark.parametrize("place", ["file", "only file in the folder", "in place of the weights"])
def test_pickles_are_refused_and_never_read(kind: str, place: str, tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    buffer = io.BytesIO()
    if "torch.save" in kind:
        torch.save(trap, buffer, _use_new_zipfile_serialization=kind == "torch.save")
    else:
        buffer.write(pickle.dumps(trap))
    folder = tmp_path / "folder"
    autoencoder().save(folder)
    given = folder
    if place == "in place of the weights":
        (folder / "model.safetensors").write_bytes(buffer.getvalue())
    elif place == "file":
        given = tmp_path / ("model" if "no suffix" in kind else "model.pt")
        given.write_bytes(buffer.getvalue())
    else:
        given = tmp_path / "other"
        given.mkdir()
        (given / "pytorch_model.bin").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match=r"pickle.*are refused; wanted: a folder with config\.json"):
        models.load(given)
    assert not trap.path.exists()
    assert pickle.loads(pickle.dumps(trap)) is None
    assert trap.path.exists()  # it would have sprung


# ---------------------------------------------------------------------------------------------------- a full disk


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes: the system refuses to write on, as it does where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [0, 100, 2000])
def test_a_full_disk_leaves_the_old_checkpoint(limit: int, tmp_path: Path) -> None:
    autoencoder(0).save(tmp_path)
    before = contents(tmp_path)
    assert len(before["config.json"]) < 2000 < len(before["model.safetensors"])
    with (
        pytest.raises(CheckpointError, match=r"cannot save to .*; what was saved there before is unchanged"),
        full_disk(limit),
    ):
        autoencoder(1).save(tmp_path)
    assert contents(tmp_path) == before  # and no half-written file beside it


def test_killed_between_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever moment it is, there are weights and a header that fit."""
    autoencoder(0).save(tmp_path)
    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        if str(target).endswith("config.json"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        autoencoder(1).save(tmp_path)
    loaded = models.load(tmp_path)
    assert torch.equal(loaded.to_latent.weight, autoencoder(1).to_latent.weight)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CheckpointError, match="cannot save to"):
        autoencoder().save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
