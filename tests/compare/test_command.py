"""The command `genmod compare`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genmod.cli import main

MODELS = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU())

class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)

    def forward(self, x, label):
        return x + self.embedding(label)

def broken():
    raise RuntimeError("no weights")

def number():
    return 3
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "models_of_a_user.py"
    path.write_text(MODELS)
    return path


def test_prints_and_writes(models: Path, capsys: pytest.CaptureFixture[str]):
    files = ["--json", "c.json", "--plot", "c.png"]
    command = ["compare", f"{models}:small", "--input", "1,4,8,8", "--eval", "--no-compile", "--budget", "0.1", *files]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "Sequential on cpu, float32, evaluation, inputs 0[1, 4, 8, 8]" in printed and "forward+backward" in printed
    assert json.loads(Path("c.json").read_text())["equal"] is True
    assert Path("c.png").stat().st_size > 0


def test_by_module_names_integers_and_dtype(models: Path, capsys: pytest.CaptureFixture[str]):
    inputs = ["--input", "3,4", "--input", "label=3:int64"]
    command = ["compare", "models_of_a_user:Conditional", *inputs, "--dtype", "float64", "--budget", "0"]
    assert main(command) == 0
    assert "float64, training, inputs 0[3, 4], label[3]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("nothing_of_that_name:f", ["--input", "1"], "cannot import nothing_of_that_name"),
        ("models_of_a_user:nothing", ["--input", "1"], "has no 'nothing'"),
        ("models_of_a_user", ["--input", "1"], "expected package.module:function"),
        ("nothing.py:f", ["--input", "1"], "there is no file nothing.py"),
        ("models_of_a_user:broken", ["--input", "1"], "raised RuntimeError: no weights"),
        ("models_of_a_user:number", ["--input", "1"], "returned a int"),
        ("models_of_a_user:nn", ["--input", "1"], "expected a function"),
        ("models_of_a_user:small", ["--input", "1,x"], "--input: got '1,x'"),
        ("models_of_a_user:small", ["--input", "1:int3"], "--input: got '1:int3'"),
        ("models_of_a_user:small", ["--input", "1,3,8,8"], "the model does not take 1,3,8,8"),
        ("models_of_a_user:small", ["--input", "1,4,8,8", "--device", "abacus"], "--device: got 'abacus'"),
        ("models_of_a_user:small", ["--input", "1,4,8,8", "--json", "nowhere/c.json"], "there is no folder"),
    ],
)
def test_what_the_user_can_put_right(
    models: Path, capsys: pytest.CaptureFixture[str], factory: str, options: list[str], message: str
):
    assert main(["compare", factory, *options]) == 2
    assert message in capsys.readouterr().err
