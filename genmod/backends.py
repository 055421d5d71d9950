"""Which implementations exist, which one a call takes, and why not the others.

The choice is the dispatcher's: a CPU tensor takes the C++ kernel if the extension is built, a CUDA tensor takes
Triton's (or CUDA C++, where a table of measured shapes says so), everything else the reference. `backend(name)`
replaces that choice by one backend that must then run or raise.

A backend is a module per family that has a function for each dispatcher op of the family, with the op's own
signature: `genmod.reference.<family>`, `genmod.kernels.<family>`, and for the compiled ones the libraries that they
register themselves.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from genmod import _native, gate

NAMES = ("reference", "cpp", "triton", "cuda")

#: dispatcher op -> family; filled by genmod.ops as it defines them.
_FAMILY_OF: dict[str, str] = {}
#: public function -> the dispatcher op that decides its backend, where that has another name.
_OP_OF: dict[str, str] = {}
#: public function -> why a call of it takes plain PyTorch though there is a kernel; "" where it does not.
_WHY_PLAIN: dict[str, Callable[..., str]] = {}
#: What open contexts force, the last opened last; each a list of its own, so that whichever closes finds its entry.
_forced: list[list[str]] = []


class Status(NamedTuple):
    """Whether a backend can run in this process, and if not, why."""

    name: str
    available: bool
    reason: str


def register_op(op: str, family: str) -> None:
    """Tell the backends of a dispatcher op, so that they can be asked to run it."""
    _FAMILY_OF[op] = family


def register_public(name: str, op: str, why_plain: Callable[..., str] | None = None) -> None:
    """Tell which dispatcher op the public function `name` calls, or is mainly made of, where that has another name; and
    that some calls of it take plain PyTorch: `why_plain(*args, **kwargs)` says why, or is an empty string."""
    _OP_OF[name] = op
    if why_plain is not None:
        _WHY_PLAIN[name] = why_plain


def dispatcher_op(name: str) -> str | None:
    """The dispatcher op whose backend the public function `name` takes; None if there is no such function."""
    name = _OP_OF.get(name, name)
    return name if name in _FAMILY_OF else None


def family_of(op: str) -> str | None:
    """The family that a dispatcher op belongs to."""
    return _FAMILY_OF.get(op)


def why_plain(name: str, *args: Any, **kwargs: Any) -> str:
    """Why this call of the public function `name` takes plain PyTorch; an empty string if it takes a kernel."""
    return _WHY_PLAIN[name](*args, **kwargs) if name in _WHY_PLAIN else ""


def _triton_missing() -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not torch.cuda.is_available() and not _interpreting():
        return "no GPU is visible, and TRITON_INTERPRET=1 is not set"
    return ""


def _cuda_missing() -> str:
    if not _native.loaded:
        return _native.reason
    if not _native.cuda_built():
        return f"the extension was built without CUDA: {_native.build_record().get('why_not_cuda') or 'no reason kept'}"
    return "" if torch.cuda.is_available() else "no GPU is visible"


def _missing(name: str) -> str:
    """Why the backend `name` cannot run here, or an empty string."""
    if name == "reference":
        return ""
    if name == "cpp":
        return "" if _native.loaded else _native.reason
    return _triton_missing() if name == "triton" else _cuda_missing()


def status() -> list[Status]:
    """Every backend, whether it can run here, and the reason where it cannot."""
    reasons = [(name, _missing(name)) for name in NAMES]
    return [Status(name, not reason, reason or "available") for name, reason in reasons]


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def forced() -> str | None:
    """The backend that is forced now, if any."""
    if not _forced:
        return None
    name = _last_forced()
    return None if name == "auto" else name


def _last_forced() -> str:
    last = _forced[-1:]  # one look: another thread may be closing its context
    return last[0][0] if last else "auto"


def implementation(backend: str, op: str) -> Callable[..., Any]:
    """The function with which `backend` computes the dispatcher op `op`."""
    family = _FAMILY_OF[op]
    if backend == "reference":
        return getattr(importlib.import_module(f"genmod.reference.{family}"), op)
    if backend == "triton":
        return _triton_launcher(family, op)
    if backend == "cuda":
        return getattr(torch.ops.genmod_cuda, op) if has_kernel("cuda", op) else _lacks_cuda_kernel(op)
    raise ValueError(f"the backend {backend!r} is reached through the dispatcher only")


@functools.cache
def _triton_launcher(family: str, op: str) -> Callable[..., Any]:
    launcher = getattr(importlib.import_module(f"genmod.kernels.{family}"), op)
    return launcher if _interpreting() else importlib.import_module("genmod.kernels.replay").remembering(launcher)


def has_kernel(backend: str, op: str) -> bool:
    """Whether a backend has the dispatcher op `op`. Each has all, but CUDA C++: those where it may beat Triton."""
    return backend != "cuda" or (_native.cuda_built() and hasattr(torch.ops.genmod_cuda, op))


def _lacks_cuda_kernel(op: str) -> Callable[..., Any]:
    def refuse(*args: Any) -> Any:
        raise RuntimeError(f"genmod: backend 'cuda' is forced, but {op} has no kernel in CUDA C++")

    return refuse


def _runs_on(backend: str) -> tuple[str, ...]:
    if backend == "reference":
        return ("CPU", "CUDA")
    if backend == "triton":
        return ("CPU", "CUDA") if _interpreting() else ("CUDA",)
    return ("CPU",) if backend == "cpp" else ("CUDA",)


def _refuse(backend: str, key: str) -> Callable[..., Any]:
    def refuse(*args: Any) -> Any:
        raise RuntimeError(f"genmod: backend {backend!r} is forced, but it does not run on {key} tensors")

    return refuse


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force one backend, forward and backward, for the whole process while the context is open.

    The backend must be able to run, here and on the tensors given, or an error says why it cannot: nothing falls back.
    It holds for all threads, since autograd runs the backward of CUDA tensors in threads of its own; where several
    threads open contexts, what was opened last and is still open holds. Opening and closing wait until no other thread
    is in a call of genmod; what `torch.compile` made calls kernels past that, so leave it alone meanwhile.

    Args:
        name: "reference", "cpp" (CPU), "triton" (CUDA; CPU under TRITON_INTERPRET=1), "cuda" (CUDA C++) or "auto",
            which is the choice that is made when nothing is forced.

    Raises:
        ValueError: if there is no backend of that name.
        RuntimeError: if it cannot run in this process, with the reason.
    """
    if name not in (*NAMES, "auto"):
        raise ValueError(f"backend: got {name!r}, expected one of {', '.join(NAMES)} or auto")
    reason = "" if name == "auto" else _missing(name)
    if reason:
        raise RuntimeError(f"backend {name!r} cannot run here: {reason}")
    entry = [name]
    try:
        with gate.change():
            _forced.append(entry)
            _install(name)
        yield
    finally:
        with gate.change():
            _forced[:] = [other for other in _forced if other is not entry]
            _install(_last_forced())


_overrides: torch.library.Library | None = None


def _install(name: str) -> None:
    """Put `name` in place of the usual kernels. What an enclosing context put there goes first: where `name` needs the
    usual kernel, that would run instead of it."""
    global _overrides
    if _overrides is not None:
        _overrides._destroy()
    library = _overrides = torch.library.Library("genmod", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for op in _FAMILY_OF:
            for key in ("CPU", "CUDA"):
                if name == "auto":
                    kernel = None
                elif key not in _runs_on(name):
                    kernel = _refuse(name, key)
                else:
                    kernel = None if name == "cpp" else implementation(name, op)
                if kernel is not None:
                    library.impl(op, kernel, key, allow_override=True)


def force_from_environment() -> None:
    """Apply GENMOD_BACKEND for the life of the process, if it is set."""
    name = os.environ.get("GENMOD_BACKEND", "auto")
    if name == "auto":
        return
    try:
        _environment.enter_context(backend(name))
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"GENMOD_BACKEND={name}: {error}") from None
    atexit.register(_environment.close)  # while the modules that closing needs are still there


_environment = contextlib.ExitStack()


# CUDA C++ kernels are taken where they were measured on a GPU and beat Triton's; none has been measured yet.
def choose_on_cuda(op: str) -> str:
    """The backend for a CUDA tensor when nothing is forced."""
    return "reference" if _no_triton() else "triton"


@functools.cache
def _no_triton() -> bool:
    reason = _triton_missing()
    if reason:
        warnings.warn(f"genmod runs its slower reference on CUDA tensors: {reason}", RuntimeWarning, stacklevel=2)
    return bool(reason)


def on_cuda(op: str) -> Callable[..., Any]:
    """The kernel registered for CUDA tensors: it chooses when it is called, and imports Triton only then."""

    @functools.wraps(implementation("reference", op))
    def run(*args: Any) -> Any:
        return implementation(choose_on_cuda(op), op)(*args)

    return run


def ops() -> tuple[str, ...]:
    """Every dispatcher op."""
    return tuple(_FAMILY_OF)


#: backend -> the devices that it is made for.
HOME = {"cpp": "cpu", "triton": "cuda", "cuda": "cuda"}


def explain_choice(op: str, device: torch.device) -> tuple[str, str, list[tuple[str, str]]]:
    """The backend that `op` would take on that device, why, and (backend, reason) for each that it would not."""
    name, reason = forced(), "forced"
    if name is None:
        name, reason = _choice(op, device)
    return name, reason, [(other, _why_not(op, other, name, device)) for other in NAMES if other != name]


def _choice(op: str, device: torch.device) -> tuple[str, str]:
    if device.type == "cpu":
        return ("cpp", "the kernel for CPU tensors") if _native.loaded else ("reference", _native.reason)
    if device.type != "cuda":
        return "reference", f"there are no kernels for {device.type} tensors"
    name = choose_on_cuda(op)
    return name, "the kernel for CUDA tensors" if name == "triton" else _triton_missing()


def _why_not(op: str, other: str, chosen: str, device: torch.device) -> str:
    if reason := _missing(other):
        return reason
    if not has_kernel(other, op):
        return "there is no CUDA C++ kernel of this op"
    if HOME.get(other, device.type) != device.type:
        return f"runs on {HOME[other]} tensors, not on {device.type}"
    if forced():
        return f"{chosen!r} is forced"
    return "not yet measured faster than Triton on a GPU" if other == "cuda" else f"slower than {chosen}"
