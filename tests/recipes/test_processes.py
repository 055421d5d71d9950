"""Two processes that share each batch, as torchrun and `accelerate launch` start them, give the curve of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from genmod import models
from genmod.cli import main
from genmod.recipes.checkpoint import model_folder

COMMAND = ["train", "vae", "--steps", "12", "--batch", "16", "--save-every", "5", "--no-metrics", "--device", "cpu"]


def processes(count: int, arguments: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """Run `genmod` in so many processes that know of each other by the usual variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "genmod", *arguments],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]


def test_two_processes_give_the_curve_of_one(tmp_path: Path) -> None:
    done = processes(2, [*COMMAND, "--out", str(tmp_path / "two"), "--ema", "0.9"])
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main([*COMMAND, "--out", str(tmp_path / "one"), "--ema", "0.9"]) == 0
    finally:
        torch.set_num_threads(before)
    one, two = (load_file(tmp_path / run / "checkpoints/step-00000012/training.safetensors") for run in ("one", "two"))
    # Sums over 2 x 8 images are rounded otherwise than over 16; Adam makes steps of one size from what differs by it.
    assert two["curve.model"].tolist() == pytest.approx(one["curve.model"].tolist(), rel=1e-4)
    assert two["curve.model"][:2].tolist() == pytest.approx(one["curve.model"][:2].tolist(), rel=1e-6)
    weights = [models.load(model_folder(tmp_path / run)).state_dict() for run in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-3)
    assert json.loads((tmp_path / "two/metrics.json").read_text())["measured"]
    assert not done[1].stdout  # the second process leaves the words, and the files, to the first
