"""A forward as a graph, with everything that the graph took for granted."""

from __future__ import annotations

import copy
import enum
import functools
import inspect
import operator
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import inplace_methods

from genmod.swap.classes import class_of
from genmod.swap.functional.purity import START, Impure, Watch, check

#: What `nn.Module` keeps for itself; what a forward does with it goes through torch's own code.
_INTERNAL = set(vars(nn.Module())) - {"training"}
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.memory_format, enum.Enum)


@dataclass(frozen=True)
class Trace:
    """One path through a forward.

    Attributes:
        graph: of calls of submodules, functions and methods; parameters are read as attributes of the module.
        tensors: the arguments that were tensors. Every other one had its default.
        reads: (path of the submodule, attribute) to the value that the path was chosen by.
    """

    graph: fx.Graph
    tensors: tuple[str, ...]
    reads: dict[tuple[str, str], Any]


def trace(module: nn.Module, tensors: tuple[str, ...], training: bool) -> Trace:
    """Follow the forward of `module`'s class with tensors for the named arguments and defaults for the others.

    Nothing of the module is touched: what runs is a shadow of it, in which the attributes that are read are noted.

    Raises:
        Impure: the forward cannot be followed, or does what a graph does not hold.
    """
    reads: dict[tuple[str, str], Any] = {}
    try:
        shadow = _shadow(module, reads, "", {}, training)
        type.__setattr__(type(shadow), "forward", _called_with(class_of(module).forward, tensors))
        before = _attributes(shadow)
        reads.clear()
        with Watch() as watch:
            graph = _Tracer().trace(shadow)
    except Exception as error:  # fx and the forward raise whatever they raise at a stand-in
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Impure(f"torch.fx does not follow its forward: {first}") from error
    check(watch)
    noted = dict(reads)
    if _attributes(shadow) != before:
        raise Impure("its forward changes attributes of the module")
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            raise Impure("its forward makes a constant tensor")
    return Trace(graph, tensors, {key: _kept(key, value) for key, value in noted.items()} | _lengths(module, graph))


# The shadow.


def _shadow(
    module: nn.Module, reads: dict[tuple[str, str], Any], path: str, done: dict[int, nn.Module], training: bool
) -> nn.Module:
    """A copy of the tree of modules, with the same tensors, whose classes note what is read."""
    if id(module) in done:
        return done[id(module)]
    made: Any = object.__new__(_noting(type(module), reads, path))
    done[id(module)] = made
    state = {key: dict(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
    state["training"] = training
    state["_modules"] = {
        name: child and _shadow(child, reads, f"{path}.{name}" if path else name, done, training)
        for name, child in module._modules.items()
    }
    object.__setattr__(made, "__dict__", state)
    return made


def _noting(cls: type, reads: dict[tuple[str, str], Any], path: str) -> type:
    def __getattribute__(self: Any, name: str) -> Any:
        value = super(made, self).__getattribute__(name)
        if name not in _INTERNAL and not name.startswith("__") and _is_state(value):
            reads[path, name] = value
        return value

    def __getattr__(self: Any, name: str) -> Any:
        value = super(made, self).__getattr__(name)
        if value is None:  # a parameter, buffer or submodule that is not there
            reads[path, name] = None
        return value

    made: Any = type(cls)(cls.__name__, (cls,), {"__getattribute__": __getattribute__, "__getattr__": __getattr__})
    return made


def _attributes(shadow: nn.Module) -> dict[tuple[str, str], Any]:
    """What every module holds, by identity; of its dictionaries, of parameters and the like, what they hold."""
    found: dict[tuple[str, str], Any] = {}
    for path, module in shadow.named_modules():
        for key, value in vars(module).items():
            found[path, key] = [(k, id(v)) for k, v in value.items()] if isinstance(value, dict) else id(value)
    return found


def _is_state(value: Any) -> bool:
    """Whether the value is what a path may hang on; tensors, modules and methods are looked up again at each call."""
    return not isinstance(value, (Tensor, nn.Module, fx.Proxy, types.MethodType, types.BuiltinMethodType))


def _kept(key: tuple[str, str], value: Any) -> Any:
    """The value to compare with later; lists and dictionaries are copied, since they may change in place."""

    def plain(item: Any) -> bool:
        if isinstance(item, (tuple, list)):
            return all(map(plain, item))
        if isinstance(item, dict):
            return all(map(plain, item)) and all(map(plain, item.values()))
        return isinstance(item, _PLAIN)

    if plain(value):
        return copy.deepcopy(value)
    if isinstance(value, (types.FunctionType, type)):
        return value
    raise Impure(f"its forward reads {'.'.join(filter(None, key))}, a {type(value).__name__} that may change")


def _lengths(module: nn.Module, graph: fx.Graph) -> dict[tuple[str, str], Any]:
    """The number of modules in each container that a call goes through."""
    found: dict[tuple[str, str], Any] = {}
    for node in graph.nodes:
        path = str(node.target).split(".") if node.op in ("call_module", "get_attr") else []
        for depth in range(1, len(path)):
            container = module.get_submodule(".".join(path[:depth]))
            if isinstance(container, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
                found[".".join(path[:depth]), "__len__"] = len(container)
    return found


def _called_with(forward: Callable[..., Any], tensors: tuple[str, ...]) -> Callable[..., Any]:
    """`forward` as a function of these arguments alone: torch.fx makes a stand-in of every argument that it sees."""
    listed = ", ".join(tensors)
    passed = ", ".join(f"{name}={name}" for name in tensors)
    scope: dict[str, Any] = {"_forward": forward}
    exec(compile(f"def forward(self, {listed}):\n    return _forward(self, {passed})\n", START, "exec"), scope)
    return scope["forward"]


# The stand-ins.


class _Tracer(fx.Tracer):
    """Every submodule is a leaf: each one is looked at by itself."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Proxy(fx.Proxy):
    """torch.fx writes `a += b` as `a = a + b`, which is another thing if there is a second name for `a`."""


def _in_place(name: str) -> Callable[..., Any]:
    function = getattr(operator, name)

    def method(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in inplace_methods:
    if _name != "setitem":
        setattr(_Proxy, f"__{_name}__", _in_place(_name))


@functools.cache
def arguments(forward: Callable[..., Any]) -> tuple[tuple[str, Any], ...]:
    """Names and defaults (`inspect.Parameter.empty` if none) of a forward's arguments after self.

    Raises:
        Impure: it takes any number of them, or some by position only.
    """
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    for p in parameters:
        if p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            raise Impure(f"its forward takes {'*' if p.kind is p.VAR_POSITIONAL else ''}{p.name}, whatever that is")
    return tuple((p.name, p.default) for p in parameters)
