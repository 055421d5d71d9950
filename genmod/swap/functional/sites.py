"""Where in a traced forward a pattern of the table stands, and what stands there afterwards."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import inplace_methods

from genmod.swap.classes import class_of
from genmod.swap.functional.expressions import EXPRESSIONS, draw_like_logvar
from genmod.swap.functional.steps import step
from genmod.swap.pattern import Parts, Pattern, RunPattern
from genmod.swap.patterns import RUN_PATTERNS
from genmod.swap.sequential import why_not


@dataclass(frozen=True, eq=False)
class Site:
    """Nodes of a graph that one call can stand for.

    Attributes:
        pattern: of the table.
        nodes: from the first to the last; the value of the last is what is computed, the others nobody else uses.
        inputs: the arguments of `call`: nodes, numbers, or names of submodules in a :class:`Path`.
        call: computes it, and takes the stock path for inputs that are not covered.
        parts, paths: the modules among the nodes, and where they are.
        what: in words.
        why_not: why it is not covered, or "".
    """

    pattern: Pattern
    nodes: tuple[fx.Node, ...]
    inputs: tuple[Any, ...]
    call: Callable[..., Any]
    parts: Parts
    paths: tuple[str, ...]
    what: str
    why_not: str = ""

    @property
    def key(self) -> str:
        """The same in every trace of the same forward."""
        return f"{self.pattern.name}: {self.what} {self.paths}"


@dataclass(frozen=True)
class Path:
    """A submodule as an argument."""

    path: str


def sites(graph: fx.Graph, root: nn.Module) -> Iterator[Site]:
    """All places, in the order of the graph; of those that overlap only the first and longest."""
    draw_like_logvar(graph)
    taken: set[fx.Node] = set()
    for node in list(graph.nodes):
        for site in (*_runs(node, root), *_expressions(node)):
            if not taken.isdisjoint(site.nodes):
                continue
            if changed := _changed_later(site, graph, root):
                site = Site(**(vars(site) | {"why_not": changed}))
            if not site.why_not:
                taken |= set(site.nodes)
            yield site
            break


def put(found: list[Site]) -> None:
    """Replace the nodes of all sites by their calls."""
    made: dict[Any, fx.Node] = {}  # one site may take what another makes
    for site in found:
        last, graph = site.nodes[-1], site.nodes[-1].graph
        with graph.inserting_before(last):
            inputs = tuple(graph.get_attr(i.path) if isinstance(i, Path) else made.get(i, i) for i in site.inputs)
            made[last] = graph.call_function(site.call, inputs)
        last.replace_all_uses_with(made[last])
        for node in reversed(site.nodes):
            graph.erase_node(node)


# Runs: modules, or functions that stand for modules, each of which takes what the one before it makes.


def _runs(first: fx.Node, root: nn.Module) -> Iterator[Site]:
    """Those that start at a node, the longest first; one that is not covered only if there is no other."""
    refused = None
    for pattern in RUN_PATTERNS.values():
        nodes = _chain(first, len(pattern.parts))
        steps = [step(node, root) for node in nodes]
        if len(steps) != len(pattern.parts):
            continue
        parts = tuple(part for part in steps if part is not None)
        if len(parts) != len(steps) or not all(map(isinstance, parts, pattern.parts)):
            continue
        site = _run_site(pattern, nodes, parts)
        if not site.why_not:
            yield site
        refused = refused or site
    if refused is not None and refused.why_not:
        yield refused


def _chain(node: fx.Node, length: int) -> tuple[fx.Node, ...]:
    """The node and those after it, as long as each has no other user."""
    nodes = [node]
    while len(nodes) < length and len(nodes[-1].users) == 1:
        following = next(iter(nodes[-1].users))
        if not following.args or following.args[0] is not nodes[-1]:
            break
        nodes.append(following)
    return tuple(nodes)


def _run_site(pattern: RunPattern, nodes: tuple[fx.Node, ...], parts: Parts) -> Site:
    paths = tuple(str(node.target) for node in nodes if node.op == "call_module")
    own = tuple(None if node.op == "call_module" else part for node, part in zip(nodes, parts, strict=True))
    what = " + ".join(f"{'F.' if mine else ''}{class_of(part).__name__}" for mine, part in zip(own, parts, strict=True))
    inputs = (nodes[0].args[0], *map(Path, paths))
    modules = tuple(part for part, mine in zip(parts, own, strict=True) if mine is None)
    return Site(pattern, nodes, inputs, _fused(pattern, own), modules, paths, what, why_not(pattern, parts))


def _fused(pattern: RunPattern, own: tuple[nn.Module | None, ...]) -> Callable[..., Any]:
    """The call of a run: `own` has the modules that stand for functions, and None for those of the model."""
    said: set[str] = set()

    def fused(input: Any, *modules: nn.Module) -> Any:
        given = iter(modules)
        parts = tuple(next(given) if part is None else part for part in own)
        why = why_not(pattern, parts)
        if not why:
            why = pattern.why_stock(parts, input) if isinstance(input, Tensor) else "its input is no tensor"
            if not why:
                return pattern.call(parts, input)
        if not torch.compiler.is_compiling() and why not in said:
            said.add(why)
            warnings.warn(f"genmod: {pattern.name} takes its stock path: {why} (said once)", UserWarning, 2)
        for part in parts:
            input = part(input)
        return input

    return fused


# Expressions: several operations that a function of genmod computes at once.


def _expressions(last: fx.Node) -> Iterator[Site]:
    for expression in EXPRESSIONS:
        found = expression.find(last)
        if found is None:
            continue
        order = {node: i for i, node in enumerate(last.graph.nodes)}
        nodes = tuple(sorted(set(found.nodes), key=order.__getitem__))
        inside = set(nodes)
        if all(set(node.users) <= inside for node in nodes[:-1]) and nodes[-1] is last:
            yield Site(expression, nodes, found.inputs, expression.call, (), (), expression.what)
            return


# What is changed in place.

_VIEWS = {operator.getitem, torch.chunk, torch.split, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze}


def _changed_later(site: Site, graph: fx.Graph, root: nn.Module) -> str:
    """Why an input of the site, which the fused call keeps for backward, would not be what it was by then."""
    kept = {_storage(i, root) for i in site.inputs if isinstance(i, fx.Node)}
    after = False
    for node in graph.nodes:
        after = after or node is site.nodes[0]
        if after and node not in site.nodes and _changes(node, root) and _storage(node.args[0], root) in kept:
            return "its input is changed in place afterwards"
    return ""


def _changes(node: fx.Node, root: nn.Module) -> bool:
    """Whether the node writes to its first argument."""
    if not node.args or not isinstance(node.args[0], fx.Node) or node.op in ("placeholder", "get_attr", "output"):
        return False
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = getattr(node.target, "__module__", "") == "_operator" and name in inplace_methods
    return in_place or bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))


def _storage(node: Any, root: nn.Module) -> Any:
    """The node whose memory this one's may be."""
    while isinstance(node, fx.Node) and node.args and isinstance(node.args[0], fx.Node):
        passes = node.op == "call_method" or (node.op == "call_function" and node.target in _VIEWS)
        if not passes and not _changes(node, root):
            break
        node = node.args[0]
    return str(node.target) if isinstance(node, fx.Node) and node.op == "get_attr" else node
