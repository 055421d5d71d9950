"""Triton's interpreter, made right for tests: importing this runs every kernel imported later on CPU tensors.

    import genmod.testing.interpreter
    from genmod.kernels import gaussian

What it puts right, in triton 3.6 and 3.7:

* bfloat16. The interpreter keeps it as bits, adds and multiplies the bits, and truncates where it should round to even.
* Loops with a run-time bound under numpy >= 2.4 (3.6 turns an array of one element into an index, which numpy refuses).
* Speed, nearly twice. It patches `triton.language` anew in each call of a device function, though the kernel's call has
  done it; and it checks integers for overflow, at five operations for one, where a GPU wraps around.
* Order. Triton decides at import whether it interprets; functions of `triton.language` made before are made over.

The setting holds for the whole process: no kernel runs on a GPU any more, so do not import this where there is one.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

_BUILDER = interpreter.InterpreterBuilder
_Handle = interpreter.TensorHandle


def _is_bf16(handle: Any) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _widen(handle: Any) -> Any:
    """A bfloat16 handle as the float32 it stands for; any other unchanged."""
    if not _is_bf16(handle):
        return handle
    return _Handle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _round(values: np.ndarray) -> Any:
    """A bfloat16 handle: float32 rounded to nearest, ties to even."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    return _Handle(bits.reshape(values.shape), tl.bfloat16)


def _binary_op(original: Callable[..., Any]) -> Callable[..., Any]:
    def binary_op(self: Any, lhs: Any, rhs: Any, op: Callable[..., np.ndarray]) -> Any:
        # Operations on the bits themselves keep to them.
        if not _is_bf16(lhs) or op in (np.bitwise_and, np.bitwise_or, np.bitwise_xor):
            return original(self, lhs, rhs, op)
        result = op(_widen(lhs).data, _widen(rhs).data)
        return _Handle(result, tl.int1) if result.dtype == np.bool_ else _round(result)

    return binary_op


def _cast_impl(original: Callable[..., Any]) -> Callable[..., Any]:
    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if _is_bf16(source) and target.scalar == tl.bfloat16:
            return source
        source = _widen(source)
        if target.scalar == tl.bfloat16:
            return _round(source.data)
        return original(self, source, target)

    return cast_impl


def _create_fp_to_fp(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        toward_zero = rounding is not None and rounding != interpreter._ir.ROUNDING_MODE.RTNE
        if {source.dtype.scalar, target.scalar} == {tl.float32, tl.bfloat16} and not toward_zero:
            return self.cast_impl(source, target)
        return original(self, source, target, rounding)

    return create_fp_to_fp


def _create_fma(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if not _is_bf16(z):
            return original(self, x, y, z)
        return _round(_widen(x).data * _widen(y).data + _widen(z).data)

    return create_fma


def _create_dot(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return original(self, _widen(a), _widen(b), *rest)

    return create_dot


def _reduce(original: Callable[..., Any]) -> Callable[..., Any]:
    """Of ReduceOps and ScanOps: in float32, then rounded."""

    def apply(self: Any, inputs: Any) -> Any:
        if isinstance(inputs, tuple) or inputs.dtype != tl.bfloat16:
            return original(self, inputs)
        wide = tl.tensor(_widen(inputs.handle), tl.block_type(tl.float32, inputs.shape))
        result = original(self, wide)
        type_ = tl.block_type(tl.bfloat16, result.shape) if result.type.is_block() else tl.bfloat16
        return tl.tensor(_round(result.handle.data), type_)

    return apply


def _patch_lang_tensor(original: Callable[..., Any]) -> Callable[..., Any]:
    def patch_lang_tensor(tensor: Any, *scope: Any) -> None:
        original(tensor, *scope)
        tensor.__index__ = lambda self: int(np.asarray(self.handle.data).reshape(-1)[0])

    return patch_lang_tensor


def _patch_lang(original: Callable[..., Any]) -> Callable[..., Any]:
    # Triton looks for the modules that the one function sees; with both patched, the functions it calls are served too.
    everything = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    return lambda fn: original(everything)


def _call_device_function(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self.rewrite()(*args, **kwargs)


def _run_grid(original: Callable[..., Any]) -> Callable[..., Any]:
    def run_grid(self: Any, *args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):  # inf and NaN are results here, as on a GPU
            return original(self, *args, **kwargs)

    return run_grid


def _make_over(module: Any) -> None:
    for name, value in list(vars(module).items()):
        if isinstance(value, JITFunction):
            setattr(module, name, interpreter.InterpretedFunction(value.fn))


def _install() -> None:
    for owner, name, wrap in (
        (_BUILDER, "binary_op", _binary_op),
        (_BUILDER, "cast_impl", _cast_impl),
        (_BUILDER, "create_fp_to_fp", _create_fp_to_fp),
        (_BUILDER, "create_fma", _create_fma),
        (_BUILDER, "create_dot", _create_dot),
        (interpreter.ReduceScanOpInterface, "apply", _reduce),
        (interpreter.GridExecutor, "__call__", _run_grid),
        (interpreter, "_patch_lang", _patch_lang),
        (interpreter, "_patch_lang_tensor", _patch_lang_tensor),
    ):
        setattr(owner, name, wrap(getattr(owner, name)))
    interpreter.interpreter_builder.options = dataclasses.replace(
        interpreter.interpreter_builder.options, sanitize_overflow=False
    )
    _BUILDER.get_bf16 = lambda self, value: _round(np.array([value], np.float32))
    interpreter.InterpretedFunction.__call__ = _call_device_function
    for module in (tl, tl.core, tl.standard, tl.math, tl.random, triton):
        _make_over(module)


_install()
