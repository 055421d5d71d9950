"""Whether code may be replaced by one trace of it.

torch.fx runs a forward once, with stand-ins for tensors. What the code does with a stand-in is recorded, or refused
where Python would have to decide something by it. What it does besides is lost, or frozen, silently: `isinstance` of a
stand-in, `x is None`, a `with` block, `torch.is_grad_enabled()`, a draw of `random`, a print. So all code that ran
during the trace is read, and only known constructs, builtins and functions of torch pass.
"""

from __future__ import annotations

import ast
import builtins
import dis
import functools
import inspect
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.overrides import get_overridable_functions

_TORCH = str(Path(torch.__file__).parent)
_OWN = str(Path(__file__).parent)

#: The file name of the code that calls the forward.
START = "<genmod trace>"

_FORBIDDEN = {
    ast.With: "a with block",
    ast.Try: "a try block",
    ast.Global: "a global statement",
    ast.Nonlocal: "a nonlocal statement",
    ast.Yield: "a generator",
    ast.YieldFrom: "a generator",
    ast.Await: "an await",
    ast.AsyncWith: "an async block",
    ast.AsyncFor: "an async loop",
    ast.Match: "a match statement",
    ast.Delete: "a del statement",
    ast.Import: "an import",
    ast.ImportFrom: "an import",
}
_BUILTINS = {
    *("abs", "bool", "dict", "enumerate", "float", "int", "len", "list", "max", "min", "range", "reversed", "round"),
    *("slice", "sum", "super", "tuple", "zip"),
}
_CONSTANTS = (torch.dtype, torch.memory_format, torch.layout, float)


class Impure(Exception):
    """Code that one trace does not stand for; the message says why."""


class Watch:
    """A context that collects the code that the forward consists of, and the globals that it saw."""

    def __init__(self) -> None:
        self.ran: dict[types.CodeType, dict[str, Any]] = {}
        self.decorated = False

    def __enter__(self) -> Watch:
        self._previous = sys.getprofile()
        sys.setprofile(self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._previous)

    def _seen(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code.co_name in ("decorate_context", "decorate_autocast"):  # no_grad and autocast above a function
            self.decorated = True
        if code.co_filename.startswith((_TORCH, _OWN)) or code.co_filename == START:
            return
        caller = frame.f_back
        while caller is not None and caller.f_code.co_filename.startswith(_OWN):  # a property, by way of the shadow
            caller = caller.f_back
        # What torch calls for itself is its own affair.
        if caller is not None and (caller.f_code in self.ran or caller.f_code.co_filename == START):
            self.ran.setdefault(code, frame.f_globals)


def check(watch: Watch) -> None:
    """Raise `Impure` if anything that ran does what a trace would lose or freeze."""
    if watch.decorated:
        raise Impure("a function in it is decorated by torch.no_grad or autocast")
    for code, seen in watch.ran.items():
        if not code.co_name.startswith(("<listcomp", "<dictcomp", "<setcomp", "<genexpr")):  # parts of other code
            _check_code(code, seen)


def _check_code(code: types.CodeType, seen: dict[str, Any]) -> None:
    name = code.co_name
    if set(code.co_freevars) - {"__class__"}:
        raise Impure(f"{name} reads variables of the function around it: {', '.join(code.co_freevars)}")
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, SyntaxError, TypeError) as error:
        raise Impure(f"the source of {name} is not at hand") from error
    function = tree.body[0]
    if len(tree.body) != 1 or not isinstance(function, ast.FunctionDef):
        raise Impure(f"{name} is no plain function")
    _check_globals(code, seen, name)
    arguments = {a.arg for a in (*function.args.args, *function.args.kwonlyargs)}
    assigned = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for node in (child for statement in function.body for child in ast.walk(statement)):
        if (found := _FORBIDDEN.get(type(node))) or type(node).__name__ == "TryStar":
            raise Impure(f"{found or 'a try block'} in {name}")
        if isinstance(node, ast.Attribute):
            _check_attribute(node, seen, name)
        elif isinstance(node, ast.Compare) and any(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops):
            _check_identity(node, arguments - assigned, name)


def _check_globals(code: types.CodeType, seen: dict[str, Any], where: str) -> None:
    for name in _global_names(code):
        value = seen.get(name, vars(builtins).get(name))
        if not (isinstance(value, types.ModuleType) or _callable_is_known(value)):
            raise Impure(f"{where} uses {name}, {_kind(value)}")


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from (i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _callable_is_known(value: Any) -> bool:
    if isinstance(value, type) and issubclass(value, BaseException):
        return True
    name = getattr(value, "__name__", "")
    if getattr(builtins, name, None) is value:
        return name in _BUILTINS
    if isinstance(value, types.FunctionType) and not value.__code__.co_filename.startswith(_TORCH):
        return True  # it was read itself, if it ran
    return _recorded(value)


def _recorded(value: Any) -> bool:
    """Whether a call of this function of torch with a stand-in becomes a node of the trace."""
    try:
        return value in _overridable()
    except TypeError:  # not hashable
        return False


@functools.cache
def _overridable() -> frozenset[Any]:
    # Those that draw like a tensor are missing in torch's own list.
    drawn = (torch.rand_like, torch.randn_like, torch.randint_like)
    return frozenset(f for functions in get_overridable_functions().values() for f in functions) | set(drawn)


def _check_attribute(node: ast.Attribute, seen: dict[str, Any], where: str) -> None:
    """Of attributes that are stored, and of those of modules such as torch."""
    if isinstance(node.ctx, ast.Store):
        raise Impure(f"{where} assigns to .{node.attr}")
    value: Any = seen
    for name in _dotted(node):
        value = value.get(name) if value is seen else getattr(value, name, None)
        if not isinstance(value, types.ModuleType):
            break
    else:
        return
    if value is None or _root(node) not in seen or not isinstance(seen[_root(node)], types.ModuleType):
        return  # an attribute of a local, of self, or of what a function returned
    if not (isinstance(value, _CONSTANTS) or _callable_is_known(value) or getattr(value, "__module__", "") == "math"):
        raise Impure(f"{where} uses {ast.unparse(node)}, {_kind(value)}")


def _dotted(node: ast.expr) -> list[str]:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else []


def _root(node: ast.expr) -> str:
    return (_dotted(node) or [""])[0]


def _check_identity(node: ast.Compare, arguments: set[str], where: str) -> None:
    """`x is None` of an argument, whose kind the guards ask for, or of an attribute of self, which they compare."""
    for side in (node.left, *node.comparators):
        known = isinstance(side, ast.Constant) or (isinstance(side, ast.Name) and side.id in arguments)
        if not (known or _root(side) == "self"):
            raise Impure(f"{where} asks {ast.unparse(node)!r}, which a trace cannot answer")


def _kind(value: Any) -> str:
    if value is None:
        return "which is not defined there"
    if callable(value):
        return "a call that a trace does not record"
    return f"a global {type(value).__name__} that may change"
