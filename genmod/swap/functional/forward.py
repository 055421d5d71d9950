"""A module whose forward runs as a rewritten trace of itself wherever that trace holds."""

from __future__ import annotations

import enum
import functools
import inspect
import linecache
from collections.abc import Callable
from itertools import count
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from genmod.swap.classes import Swapped, class_of, swap
from genmod.swap.functional.purity import Impure
from genmod.swap.functional.sites import Site, put, sites
from genmod.swap.functional.steps import NAMES
from genmod.swap.functional.trace import Trace, arguments, trace
from genmod.swap.patterns import RUN_PATTERNS

_NUMBER = count()


class Plan:
    """The forward that an instance runs, and which sites were put together in it.

    It lives as long as the process: a pickle keeps the keys of the sites, and the forward is traced again on loading.
    """

    def __init__(self, keys: frozenset[str], forward: Callable[..., Any] | None = None) -> None:
        self.keys, self.forward = keys, forward

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self  # it names submodules and attributes, and holds none

    def __reduce__(self) -> Any:
        return Plan, (self.keys,)


class FusedForward(Swapped):
    """Mixin of modules with a forward of their own."""

    _genmod_swap: Plan | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own class, by the trace that holds for these arguments, if one does."""
        plan = self._genmod_swap
        if plan is None or plan.forward is None:
            return super().forward(*args, **kwargs)
        return plan.forward(self, *args, **kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        if "_genmod_original" in vars(type(self)):
            _sign(type(self))
        plan = self._genmod_swap
        if plan is not None and plan.forward is None:
            try:
                again = plan_for(self, lambda site: site.key in plan.keys)  # type: ignore[arg-type]
            except Impure:  # the class was written anew since: its own forward runs
                again = None
            self.__dict__["_genmod_swap"] = again


def swap_forward(module: nn.Module, plan: Plan) -> None:
    """Make `module` run the plan. Its class shows the signature that its own has."""
    swap(module, FusedForward, plan)
    _sign(type(module))


def _sign(made: type) -> None:
    """Give the class the signature of the forward that it stands for: exporters name inputs by it."""
    if "forward" in vars(made):
        return

    @functools.wraps(made._genmod_original.forward)  # type: ignore[attr-defined]
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return FusedForward.forward(self, *args, **kwargs)

    type.__setattr__(made, "forward", forward)


def candidate(module: nn.Module) -> bool:
    """Whether a module has a forward of its own in which a pattern may stand."""
    cls = class_of(module)
    if cls.__module__.startswith(("torch.", "genmod.")) or "forward" in vars(module):
        return False
    if isinstance(module, nn.Sequential) and cls.forward is nn.Sequential.forward:
        return False
    own = [c for c in cls.__mro__ if not c.__module__.startswith(("torch.", "genmod."))]
    names = {name for c in own for f in vars(c).values() for name in _names(f)}
    first = {part for pattern in RUN_PATTERNS.values() for part in pattern.parts[0]}
    return not NAMES.isdisjoint(names) or any(class_of(child) in first for child in module.children())


def _names(function: Any) -> tuple[str, ...]:
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    return () if code is None else code.co_names


def plan_for(module: nn.Module, accepts: Callable[[Site], bool]) -> Plan | None:
    """Trace a module's forward and put together the sites that are covered and accepted; None if there are none.

    Traced are training and evaluation, where the forward asks which it is in; and calls that leave arguments with a
    default of None out, and that give tensors for them.

    Raises:
        Impure: the forward cannot be followed at all; the message says why.
    """
    if parametrize.is_parametrized(module):
        raise Impure("parametrised: its class is not its own")
    signature = arguments(class_of(module).forward)
    keys: set[str] = set()
    variants = []
    failures: list[Impure] = []
    for tensors in _choices(signature):
        for training in (module.training, not module.training):
            try:
                traced = trace(module, tensors, training)
            except Impure as error:
                failures.append(error)
                continue
            found = [site for site in sites(traced.graph, module) if accepts(site) and not site.why_not]
            keys |= {site.key for site in found}
            put(found)
            variants.append(traced)
            if not any(name == "training" for _, name in traced.reads):
                break  # the same in both modes
    if not variants:
        raise failures[0]
    return Plan(frozenset(keys), _dispatcher(variants, signature)) if keys else None


def _choices(signature: tuple[tuple[str, Any], ...]) -> list[tuple[str, ...]]:
    """Which arguments are tensors: those without a default; and also those with a default of None."""
    needed = tuple(name for name, default in signature if default is inspect.Parameter.empty)
    more = tuple(name for name, default in signature if default is inspect.Parameter.empty or default is None)
    return [needed] if needed == more else [needed, more]


# The code.


def _dispatcher(variants: list[Trace], signature: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """A function with the arguments of the forward, that runs the first trace that holds."""
    scope: dict[str, Any] = {"_Tensor": Tensor, "_same": _same, "_stock": _stock}
    lines = []
    for number, variant in enumerate(variants):
        scope[f"_trace{number}"] = _function(variant.graph)
        conditions = [f"isinstance({name}, _Tensor)" for name in variant.tensors]
        for name, default in signature:
            if name not in variant.tensors:
                conditions.append(_condition(name, f"_default_{name}", default))
        for i, ((path, name), value) in enumerate(variant.reads.items()):
            scope[f"_value{number}_{i}"] = value
            holder = _expression(path)
            got = f"len({holder})" if name == "__len__" else f"{holder}.{name}"
            conditions.append(_condition(got, f"_value{number}_{i}", value))
        lines.append(f"    if {' and '.join(conditions) or 'True'}:")
        lines.append(f"        return _trace{number}({', '.join(['self', *variant.tensors])})")
    taken = ", ".join(
        name if value is inspect.Parameter.empty else f"{name}=_default_{name}" for name, value in signature
    )
    scope |= {f"_default_{name}": value for name, value in signature if value is not inspect.Parameter.empty}
    passed = ", ".join(f"{name}={name}" for name, _ in signature)
    source = "\n".join([f"def forward(self, {taken}):", *lines, f"    return _stock(self, {passed})", ""])
    return _compiled(source, scope)


def _condition(got: str, wanted: str, value: Any) -> str:
    single = value is None or isinstance(value, (bool, enum.Enum, type)) or callable(value)
    return f"{got} is {wanted}" if single else f"_same({got}, {wanted})"


def _same(got: Any, wanted: Any) -> bool:
    return type(got) is type(wanted) and got == wanted


def _stock(module: Any, **arguments: Any) -> Any:
    """The module's own forward, for calls that no trace stands for."""
    if not any(isinstance(value, fx.Proxy) for value in arguments.values()):
        module._genmod_stock("none of its traces holds for these arguments and attributes")
    return module._genmod_original.forward(module, **arguments)


def _expression(path: str) -> str:
    """The code that finds a submodule."""
    found = "self"
    for name in path.split(".") if path else ():
        found = f"{found}.{name}" if name.isidentifier() else f"getattr({found}, {name!r})"
    return found


def _function(graph: fx.Graph) -> Callable[..., Any]:
    code = graph.python_code("self")
    return _compiled(code.src, dict(code.globals))


def _compiled(source: str, scope: dict[str, Any]) -> Callable[..., Any]:
    """Source as a function, which tracebacks and debuggers can show."""
    name = f"<genmod forward {next(_NUMBER)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), scope)
    return scope["forward"]
