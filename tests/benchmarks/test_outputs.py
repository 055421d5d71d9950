"""The page, the tables of the documents, the comparison with another revision, and what a call costs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from genmod.bench import against, overhead, page, report, tables
from genmod.recipes import RecipeError
from genmod.specs import specs

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CPU = torch.device("cpu")
VOID = {"meta", "br", "img", "link", "input", "hr"}


def machine(**changes):
    known = {"date": "2026-01-02T03:04:05", "commit": "0" * 40, "uncommitted_changes": False, "genmod": "0.1.0"}
    known |= {"torch": "2.13.0", "gpu": None, "processor": "a <fast> one", "threads": 2, "instruction_set": "avx2"}
    return known | changes


def row(op="mse", eager=2e-3, genmod=1e-3, **changes):
    seconds = {"eager": eager, "compile": 0.9e-3, "genmod": genmod, "peer:diffusers": 3e-3}
    made = {"op": op, "workload": "images [1, 2], packed", "mode": "forward", "dtype": "float32", "cold": False}
    made |= {"median_seconds": seconds, "quartiles_seconds": {n: [0.9 * s, 1.1 * s] for n, s in seconds.items()}}
    made |= {"rounds": dict.fromkeys(seconds, 9), "peak_bytes": dict.fromkeys(seconds, 1 << 20)}
    made |= {"launches": {"eager": 5, "genmod": 1}, "bytes_moved": 4_000_000, "flops": 2_000_000}
    return made | {"copy_bytes_per_second": 8e9} | changes


def ops(*rows):
    made = {"kind": "ops", "machine": machine(), "dtype": "float32", "matmul_flops_per_second": 1e11}
    return made | {"rows": list(rows) or [row(), row("l1", mode="double backward")], "peers_not_raced": []}


def results():
    """One of every kind."""
    scaling = [row(size=size, genmod=size * 1e-5) for size in (1, 2, 4)]
    changed = {"op": "mse", "workload": "w", "mode": "forward", "seconds": {"before": [2.0, 2.1], "now": [1.0, 1.1]}}
    changed |= {"ratio": 2.0, "interval": [1.9, 2.1], "verdict": "faster"}
    call = {"op": "mse", "shape": [2, 3], "kernels": 1}
    call |= {"median_seconds": {"kernel": 1e-6, "op": 5e-6, "op in training": 2e-5}}
    alone = {"kind": "overhead", "import_seconds": [0.05, 0.06], "without_kernel": ["dip"], "rows": [call]}
    shared = {"machine": machine(), "dtype": "float32"}
    return [
        ("ops", ops()),
        ("scaling", {"kind": "scaling", "axis": "batch", "rows": scaling} | shared),
        ("against", {"kind": "against", "revision": "main", "rows": [changed]} | shared),
        ("overhead", alone | shared),
    ]


class Page(HTMLParser):
    """Notes what a browser would fetch, and whether tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action") and not value.startswith("#"):
                self.fetched.append(value)
            if value and "url(" in value and "url(#" not in value:
                self.fetched.append(value)
        if tag in ("script", "link", "iframe", "object", "img"):
            self.fetched.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def made():
    return page.html(results())


def test_the_page_needs_nothing_else(made):
    parsed = Page()
    parsed.feed(made)
    assert parsed.fetched == [] and "@import" not in made
    assert parsed.wrong == [] and parsed.open == []
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert parsed.count["svg"] == 5  # ratios and roofline, and one of each other kind
    assert parsed.count["table"] == 4
    assert "a &lt;fast&gt; one" in made and "<fast>" not in made


def test_the_page_shows_in_a_browser(made, tmp_path):
    browser = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None)
    if browser is None:
        pytest.skip("no Chromium is installed; the page's structure is checked without one")
    file = tmp_path / "page.html"
    file.write_text(made)
    quiet = (
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        f"--user-data-dir={tmp_path}/profile",
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", *quiet, "--dump-dom", file.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "<title>genmod benchmarks</title>" in shown and shown.count("<svg") == 5


def test_cells_are_arithmetic():
    found = report.cells(row(), ops())
    assert (found["x eager"], found["x compile"], found["x peers"]) == ("2.00", "0.90", "diffusers 3.00")
    assert (found["genmod"], found["±"], found["launches"]) == ("1,000 us", "10 %", "1 / 5")
    assert (found["GB/s"], found["of copy"], found["GFLOP/s"]) == ("4.0", "50 %", "2.0")
    # 4 MB at 8 GB/s take half a millisecond, which is more than 2 MFLOP at 100 GFLOP/s.
    assert found["roofline"] == "50 %"
    bound = report.cells(row(flops=90_000_000), ops())
    assert bound["roofline"] == "90 %"
    assert "roofline" not in report.cells(row(mode="double backward"), ops())


def test_losses_are_listed_worst_first():
    rows = [row("a", genmod=1e-3), row("b", genmod=2e-3), row("c", genmod=0.5e-3)]
    lines = report.losses([(r, ops()) for r in rows]).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| b", "| a"]
    assert "compile | 0.45x" in lines[0]


def test_no_table_is_stale():
    """`genmod bench tables` rewrites them."""
    assert tables.main(ROOT, check=True) == 0


def test_a_stale_table_is_found_and_filled(tmp_path, capsys):
    folder = tmp_path / tables.RESULTS
    folder.mkdir(parents=True)
    (folder / "a.json").write_text(json.dumps(ops(row(), row("l1"))))
    readme = tmp_path / "README.md"
    readme.write_text(
        'before\n<!-- measured: short\na.json op=mse workload="[1, 2]"\n-->\nold\n<!-- /measured -->\nafter\n'
    )
    assert tables.main(tmp_path, check=True) == 1
    assert "stale: README.md" in capsys.readouterr().err and "old" in readme.read_text()
    assert tables.main(tmp_path) == 0
    text = readme.read_text()
    assert "| `mse` images [1, 2], packed, forward | 1,000 us | 2x | 0.9x | 1.00x |" in text
    assert "old" not in text and "`l1`" not in text and text.startswith("before") and text.endswith("after\n")
    assert tables.main(tmp_path, check=True) == 0
    readme.write_text("<!-- measured: short\na.json op=gone\n-->\n<!-- /measured -->")
    with pytest.raises(RecipeError, match="op=gone"):
        tables.main(tmp_path)


def test_committed_results_name_no_folder():
    for file in RESULTS.glob("*.json"):
        assert not {"/home", "/root", "/tmp", "/Users"} & {
            w[: w.find("/", 1)] for w in file.read_text().split('"') if w
        }


def test_a_change_is_told_from_noise():
    generator = torch.Generator().manual_seed(0)
    drift = (0.5 * torch.randn(15, generator=generator)).exp()  # the machine's own mood, which both sides share

    def times(factor: float, spread: float) -> list[float]:
        return (factor * drift * (spread * torch.randn(15, generator=generator)).exp()).tolist()

    assert against.change(times(1.0, 0.02), times(1.0, 0.02))["verdict"] == "noise"
    faster = against.change(times(1.3, 0.02), times(1.0, 0.02))
    assert faster["verdict"] == "faster" and faster["interval"][0] < 1.3 < faster["interval"][1] * 1.05
    assert against.change(times(1.0, 0.02), times(1.2, 0.02))["verdict"] == "slower"
    # An interval of 95 % is wrong now and then, but not much more often than it says.
    alarms = [against.change(times(1.0, 0.3), times(1.0, 0.3), draws=200)["verdict"] != "noise" for _ in range(200)]
    assert 0 < sum(alarms) < 25
    # Told apart, and still not worth a word.
    assert against.change([1.001] * 15, [1.0] * 15)["verdict"] == "noise"


def test_a_process_answers_in_turns():
    """The protocol, with one process for both sides, and without a build."""
    case = {"op": "l1", "workload": "small [64, 10]", "mode": "forward+backward", "device": "cpu", "dtype": "float32"}
    with against.worker(ROOT) as process:
        times = against.race(process, process, case, rounds=9)
        assert times is not None and {name: len(t) for name, t in times.items()} == {"before": 9, "now": 9}
        assert all(t > 0 for each in times.values() for t in each)
        assert against.race(process, process, case | {"op": "of another day"}, rounds=9) is None
        with pytest.raises(against.CannotCompare, match="ended"):
            process.ask(prepare=case | {"device": "no such device"})


def test_a_worktree_is_another_revision_and_is_removed():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    before = subprocess.run(["git", "-C", ROOT, "worktree", "list"], capture_output=True, text=True, check=True).stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(against, "_build", lambda root, tree, revision: None)
        with against.built("HEAD") as tree:
            assert (tree / "genmod" / "__init__.py").is_file() and tree != ROOT
    assert not tree.exists()
    after = subprocess.run(["git", "-C", ROOT, "worktree", "list"], capture_output=True, text=True, check=True).stdout
    assert after == before


def test_overhead_is_of_the_same_kernels():
    measured = overhead.per_call(specs()["reparameterize"], CPU, rounds=5)
    assert measured is not None and measured["kernels"] == 1
    assert set(measured["median_seconds"]) == {"kernel", "op", "op in training"}
    plain = dataclasses.replace(specs()["dip"], public=specs()["dip"].eager)  # plain PyTorch
    assert overhead.per_call(plain, CPU) is None
    assert 0 < statistics.median(overhead.import_seconds(runs=1)) < 60
