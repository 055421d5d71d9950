"""The documentation is true: its code runs, its links lead somewhere, and the site builds without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PAGES = [page for page in PAGES if "_build" not in page.parts]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What a page's code takes for granted: a small model, its codes, a critic.
VAE = """
import torch
from genmod import models
images, labels = torch.rand(60, 1, 8, 8), torch.arange(60) % 2
vae = models.VAE(models.VAEConfig(image_size=8, channels=1, width=8, stages=2, latent_dim=8, dataset_size=30))
"""
GIVEN = {
    "README.md": VAE
    + """
from genmod import latent, nn as _nn
encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16))
decoder = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Unflatten(1, (1, 8, 8)))
critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))
x, real, fake = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.SiLU())
class diffusers_vae:
    decoder = _nn.Decoder(_nn.DecoderConfig.autoencoder_kl())
codes = latent.encode(vae, images)
a, b, z, queries, dims, values = codes[0], codes[1], codes[:4], codes[:2], [0, 1], [-1.0, 0.0, 1.0]
factors = torch.stack((labels, torch.arange(60) % 3), 1)
""",
    "docs/latent.md": VAE
    + """
vae.save("runs/vae")
glasses = torch.randn(8)
factors = torch.stack([(torch.arange(60) // k) % 3 for k in (1, 2, 3, 5, 7)], 1)
""",
    "docs/compare.md": """
import torch
model = torch.nn.Sequential(torch.nn.GroupNorm(2, 4), torch.nn.SiLU())
""",
    "docs/swap.md": """
import torch, genmod
model = torch.nn.Sequential(torch.nn.GroupNorm(2, 4), torch.nn.SiLU())
""",
    "docs/pretext.md": """
import torch
batches, held_out = [torch.rand(4, 3, 32, 32)], torch.rand(8, 3, 32, 32)
""",
}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [p for p in PAGES if FENCE.search(p.read_text())], ids=name)
def test_code_on_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(FENCE.findall(page.read_text()))
    namespace: dict[str, object] = {"__name__": "page"}
    exec(compile(GIVEN.get(name(page), ""), "given", "exec"), namespace)
    exec(compile(code, name(page), "exec"), namespace)


@pytest.mark.parametrize("script", TUTORIALS, ids=name)
def test_tutorials_run(script: Path):
    short = ["--steps", "60"] if "--steps" in script.read_text() else []
    done = subprocess.run(
        [sys.executable, str(script), *short],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path):
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    broken = []
    for target in targets:
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("sphinx", reason="the [docs] extra is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(ROOT / "docs"), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "families" / "gaussian.html").read_text()
    assert "sample_kl" in text and "GaussianSampler" in text


def test_every_family_has_a_page():
    from genmod.specs import specs

    for spec in specs().values():
        page = ROOT / "docs" / "families" / f"{spec.family}.md"
        assert page.exists(), f"{spec.family} has no page"
        assert spec.name in page.read_text(), f"{name(page)} does not show {spec.name}"
        assert f"families/{spec.family}" in (ROOT / "docs" / "index.md").read_text()
