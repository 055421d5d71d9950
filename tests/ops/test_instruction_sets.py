"""Every C++ kernel under every instruction set that this processor has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from genmod import _native
from genmod.specs import specs

FAMILIES = sorted({spec.family for spec in specs().values()})


@pytest.mark.skipif(not _native.loaded, reason=f"no C++ kernels: {_native.reason}")
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
@pytest.mark.parametrize("family", FAMILIES)
def test_accuracy_and_determinism(family, capability):
    """The battery's checks again, in a process in which another instruction set is chosen."""
    code = (
        "import torch, genmod; from genmod import _native; from genmod.specs import specs\n"
        "from genmod.testing import battery\n"
        "print(_native.instruction_set())\n"
        "with genmod.backend('cpp'):\n"
        f"    for spec in (s for s in specs().values() if s.family == {family!r}):\n"
        "        for dtype in (torch.float32, torch.bfloat16):\n"
        "            battery.accuracy(spec, torch.device('cpu'), dtype)\n"
        "        battery.determinism(spec, torch.device('cpu'), torch.float32)\n"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    used = done.stdout.strip().splitlines()[-1]
    if used != {"default": "baseline"}.get(capability, capability):
        pytest.skip(f"this processor has no {capability}; {used} ran")
