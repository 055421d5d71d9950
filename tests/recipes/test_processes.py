"""Under `accelerate launch`, and in two processes that share each batch, a run has the curve that it has by itself."""

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


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def processes(count: int, arguments: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """Run Python in so many processes that know of each other by the usual variables."""
    common = {
        "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, *arguments],
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


def accelerate_launch(flags: list[str], arguments: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    """`accelerate launch FLAGS --module genmod ARGUMENTS`, without what `accelerate config` may have written."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *flags, "--module", "genmod"]
    env = {**os.environ, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launcher, *arguments], env=env, capture_output=True, text=True, timeout=200)


def in_this_process(arguments: list[str]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main(arguments) == 0
    finally:
        torch.set_num_threads(before)


def curve(run: Path) -> list[float]:
    return load_file(run / "checkpoints/step-00000012/training.safetensors")["curve.model"].tolist()


def same_but_for_rounding(two: list[float], one: list[float]) -> None:
    # Sums over 2 x 8 images are rounded otherwise than over 16; Adam makes steps of one size from what differs by it.
    assert two == pytest.approx(one, rel=1e-4)
    assert two[:2] == pytest.approx(one[:2], rel=1e-6)


def test_two_processes_give_the_curve_of_one(tmp_path: Path) -> None:
    done = processes(2, ["-m", "genmod", *COMMAND, "--out", str(tmp_path / "two"), "--ema", "0.9"])
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    in_this_process([*COMMAND, "--out", str(tmp_path / "one"), "--ema", "0.9"])
    same_but_for_rounding(curve(tmp_path / "two"), curve(tmp_path / "one"))
    weights = [models.load(model_folder(tmp_path / run)).state_dict() for run in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-3)
    assert json.loads((tmp_path / "two/metrics.json").read_text())["measured"]
    assert not done[1].stdout  # the second process leaves the words, and the files, to the first


def test_accelerate_launch_of_one_process_hands_on_its_precision(tmp_path: Path) -> None:
    parts = ["--accumulate", "2"]
    done = accelerate_launch(
        ["--cpu", "--mixed_precision", "bf16"], [*COMMAND, *parts, "--out", str(tmp_path / "launched")], tmp_path
    )
    assert done.returncode == 0, done.stderr
    in_this_process([*COMMAND, *parts, "--out", str(tmp_path / "bf16"), "--precision", "bf16"])
    in_this_process([*COMMAND, *parts, "--out", str(tmp_path / "float32")])
    assert curve(tmp_path / "launched") == curve(tmp_path / "bf16") != curve(tmp_path / "float32")


def test_accelerate_launch_of_two_gloo_processes_gives_the_curve_of_one(tmp_path: Path) -> None:
    flags = ["--multi_gpu", "--num_processes", "2", "--main_process_port", free_port()]
    done = accelerate_launch(flags, [*COMMAND, "--out", str(tmp_path / "two")], tmp_path)
    assert done.returncode == 0, done.stderr
    in_this_process([*COMMAND, "--out", str(tmp_path / "one")])
    same_but_for_rounding(curve(tmp_path / "two"), curve(tmp_path / "one"))
    assert curve(tmp_path / "two") != curve(tmp_path / "one")  # which two processes that each took all would have
    assert done.stdout.count("Everything is in") == 1


COMPARING = ["beta-tcvae", "dip-vae", "wae"]
THEM_ALL = """
import sys
from genmod.cli import main
for recipe in sys.argv[3:]:
    options = ["--steps", "12", "--batch", "16", "--no-metrics", "--device", "cpu"]
    assert main(["train", recipe, *options, "--out", f"{sys.argv[1]}/{recipe}-{sys.argv[2]}"]) == 0
"""


def test_losses_that_compare_the_samples_of_a_batch_see_all_of_it(tmp_path: Path) -> None:
    two = processes(2, ["-c", THEM_ALL, str(tmp_path), "2", *COMPARING])
    one = processes(1, ["-c", THEM_ALL, str(tmp_path), "1", *COMPARING])
    assert [process.returncode for process in two + one] == [0, 0, 0], two[0].stderr + two[1].stderr + one[0].stderr
    for recipe in COMPARING:
        same_but_for_rounding(curve(tmp_path / f"{recipe}-2"), curve(tmp_path / f"{recipe}-1"))
