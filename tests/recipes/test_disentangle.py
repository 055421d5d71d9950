"""The comparison of objectives, on a set and a VAE so small that only its bookkeeping is tested."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genmod.recipes import RecipeError, disentangle, shapes

TINY = disentangle.DisentangleConfig(
    steps=3,
    batch_size=8,
    latent_dim=3,
    width=2,
    stages=2,
    evaluated=60,
    trees=2,
    draws=10,
    data=shapes.ShapesConfig(image_size=16, scales=2, rotations=2, positions=3, radius=5),
)


def test_runs_are_resumed_and_end_in_a_table_and_figures(tmp_path: Path):
    lines: list[str] = []
    options = {"seeds": [0, 1], "methods": ["VAE", "β-TCVAE"], "report": lines.append}
    assert disentangle.run(tmp_path, TINY, budget=-1, **options) == []
    assert lines == ["stopped after -1 s; call again to go on"]

    first = disentangle.run(tmp_path, TINY, **{**options, "seeds": [0]})
    assert [(run["method"], run["seed"]) for run in first] == [("VAE", 0), ("β-TCVAE", 0)]
    lines.clear()
    runs = disentangle.run(tmp_path, TINY, **options)
    assert runs[:2] == first and len(lines) == 2  # two were there already
    assert json.loads((tmp_path / "runs.json").read_text())["runs"] == runs
    for run in runs:
        assert all(
            -0.5 <= run[score] <= 1 for score in ("mig", "mig_posterior", "disentanglement", "completeness", "sap")
        )
        assert torch.tensor(run["information"]).shape == (3, 5)

    table = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["VAE", "β-TCVAE"]
    mean = (runs[0]["sap"] + runs[2]["sap"]) / 2
    assert f"| {mean:.2f} ± " in table[2]
    for name in ("disentanglement.png", "traversal_0.png", "traversal_2.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

    with pytest.raises(RecipeError, match="another configuration"):
        disentangle.run(tmp_path, replace(TINY, steps=4), **options)


def test_a_seed_decides_everything():
    data = shapes.make(TINY.data)
    method = disentangle.Method("vae", 1.0, orthogonality=1.0)
    weights = [disentangle.train(method, data, TINY, seed).to_latent.weight for seed in (3, 3, 4)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    plain = disentangle.train(disentangle.Method("vae", 1.0), data, TINY, 3).decoder.input.weight
    assert not torch.equal(plain, disentangle.train(method, data, TINY, 3).decoder.input.weight)


def test_bad_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(RecipeError, match=r"methods: got \['GAN'\]"):
        disentangle.run(tmp_path, TINY, methods=["GAN"])
    (tmp_path / "runs.json").write_text("[]")
    assert disentangle.main([str(tmp_path)]) == 2
    assert "not a file of runs" in capsys.readouterr().err
