"""Leaves out what cannot be imported here: Triton's tests without Triton, those of its interpreter where a GPU is."""

from __future__ import annotations

import importlib.util

import torch

collect_ignore_glob: list[str] = []
if importlib.util.find_spec("triton") is None:
    collect_ignore_glob += ["test_triton_*.py", "test_interpreter.py", "test_compile_only.py"]
elif torch.cuda.is_available():
    collect_ignore_glob += ["test_interpreter.py"]
