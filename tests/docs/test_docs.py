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

# What a page's code takes for granted.
GIVEN = {
    "README.md": """
import torch
from genmod import nn as _nn
x = torch.rand(4, 1, 8, 8)
encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8))
decoder = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Unflatten(1, (1, 8, 8)))
critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))
real, fake = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
class vae:
    decoder = _nn.Decoder(_nn.DecoderConfig.autoencoder_kl())
"""
}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [p for p in PAGES if FENCE.search(p.read_text())], ids=name)
def test_code_on_a_page_runs(page: Path):
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
