"""The package as a user gets it: installed into a fresh environment, imported from another folder."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from genmod import __version__

USE_IT = """
import warnings; warnings.simplefilter("error")
import torch, genmod
torch.manual_seed(0)
mean, logvar = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
z, kl = genmod.ops.sample_kl(mean, logvar)
(z.sum() + kl).backward()
assert z.shape == (3, 5) and kl.shape == () and kl > 0
assert mean.grad.isfinite().all() and logvar.grad.isfinite().all()
print(genmod.__file__)
"""


def backends_of(report: dict) -> dict[str, dict]:
    return {b["name"]: b for b in report["backends"]}


@pytest.mark.slow
def test_native_install(native_env, native_report):
    assert native_env.run(USE_IT).stdout.strip() == str(native_env.package / "__init__.py")
    assert native_report["versions"]["genmod"] == __version__
    assert native_report["versions"]["torch"] == torch.__version__
    assert native_report["build"]["native"]
    assert backends_of(native_report)["cpp"]["available"]


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "expected"), [("default", "baseline"), ("avx2", "avx2")])
def test_doctor_follows_the_switch_of_torch(native_env, native_report, capability, expected):
    if native_report["cpu"]["instruction set of genmod's C++"] == "baseline":
        pytest.skip("this processor has the baseline only")
    cpu = native_env.doctor(ATEN_CPU_CAPABILITY=capability)["cpu"]
    assert cpu["instruction set of genmod's C++"] == expected
    assert cpu["ATEN_CPU_CAPABILITY"] == capability


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_cuda_objects_load_without_a_gpu(native_env, native_report):
    assert native_report["build"]["cuda"], native_report["build"]["why_not_cuda"]
    assert native_env.run("from genmod import _native; print(_native.cuda_built())").stdout.strip() == "True"


def test_pure_install(pure_env):
    assert pure_env.run(USE_IT).stdout.strip() == str(pure_env.package / "__init__.py")
    cpp = backends_of(pure_env.doctor())["cpp"]
    assert not cpp["available"]
    assert "GENMOD_NATIVE=0" in cpp["reason"]


def test_doctor_without_rich(pure_env):
    blocked = "import sys; sys.modules['rich'] = None; from genmod.cli import main; sys.exit(main(['doctor']))"
    text = pure_env.run(blocked).stdout
    assert torch.__version__ in text
    assert "GENMOD_NATIVE=0" in text


def test_torch_is_never_replaced(fresh_env, pure_wheel):
    """With its dependencies resolved, an install beside a torch that fits brings genmod and nothing else."""
    done = fresh_env.pip("install", "--dry-run", "--no-index", "--quiet", "--report", "-", pure_wheel)
    assert done.returncode == 0, done.stderr
    assert [i["metadata"]["name"] for i in json.loads(done.stdout)["install"]] == ["genmod-torch"]


def test_import_is_quick_and_brings_no_triton(pure_env, capsys):
    code = (
        "import sys, time, torch; start = time.perf_counter(); import genmod; end = time.perf_counter();"
        "assert 'triton' not in sys.modules and 'genmod.kernels' not in sys.modules; print(end - start)"
    )
    seconds = float(pure_env.run(code).stdout)
    with capsys.disabled():
        print(f" [import genmod: {1e3 * seconds:.0f} ms beyond torch] ", end="")
    assert seconds < 2, "far beyond what a busy machine explains"


@pytest.mark.slow
def test_broken_extension_warns_once_and_works_on(native_wheel, fresh_env):
    fresh_env.install(native_wheel)
    library = next(fresh_env.package.glob("_C.*"))
    library.write_bytes(b"this is no library")
    code = USE_IT.replace('simplefilter("error")', 'simplefilter("always")')
    warned = fresh_env.run(code).stderr
    assert warned.count("RuntimeWarning") == 1
    assert library.name in warned
    cpp = backends_of(fresh_env.doctor())["cpp"]
    assert not cpp["available"]
    assert library.name in cpp["reason"]


@pytest.mark.slow
def test_editable_install(native_wheel, project, fresh_env, tmp_path):
    source = project.copy(tmp_path / "source", objects=True)
    fresh_env.install(source.folder, "--no-build-isolation", "--editable", GENMOD_CUDA="0")
    (source.folder / "kernels" / "brand_new.py").write_text("")
    and_kernels = "import genmod.kernels.brand_new as new, genmod._native as n; print(new.__file__, n.loaded)"
    inside = [str(source.folder / "genmod" / "__init__.py"), str(source.folder / "kernels" / "brand_new.py"), "True"]
    assert fresh_env.run(USE_IT + and_kernels).stdout.split() == inside

    # Going back to pure Python takes the compiled part away, also in place.
    fresh_env.install(source.folder, "--no-build-isolation", "--editable", GENMOD_NATIVE="0")
    assert not list((source.folder / "genmod").glob("_C.*"))
    assert fresh_env.run("import genmod._native as n; print(n.loaded)").stdout.strip() == "False"
