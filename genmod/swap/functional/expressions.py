"""Expressions that one of genmod's functions computes at once: the graph part of the table of patterns."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from genmod import ops
from genmod.ops.norm_act import Activation
from genmod.reference.activation import apply
from genmod.swap import activations
from genmod.swap.functional.steps import function_step
from genmod.swap.pattern import Pattern
from genmod.swap.patterns.norm_act import why_stock, widened


@dataclass(frozen=True)
class Found:
    """The nodes of an expression and what it is computed from."""

    nodes: tuple[fx.Node, ...]
    inputs: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Expression(Pattern):
    """Nodes that belong together, by what the last of them computes.

    Attributes:
        what: in words.
        find: the expression that ends at a node, or None.
        call: computes it from the found inputs, of any shape and dtype that the nodes would take.
    """

    what: str
    find: Callable[[fx.Node], Found | None]
    call: Callable[..., Any]


# Nodes as functions of nodes.

_METHODS: dict[str, Any] = {
    "exp": torch.exp,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "sum": torch.sum,
    "mean": torch.mean,
    "neg": operator.neg,
    "pow": operator.pow,
    "square": torch.square,
}
_SAME: dict[Any, Any] = {
    torch.add: operator.add,
    torch.sub: operator.sub,
    torch.mul: operator.mul,
    torch.div: operator.truediv,
    torch.true_divide: operator.truediv,
    torch.neg: operator.neg,
    torch.pow: operator.pow,
}


def _target(node: Any) -> Any:
    """The function that a node calls, one for all ways of writing it; None for other nodes."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_method":
        return _METHODS.get(str(node.target), node.target)
    return _SAME.get(node.target, node.target) if node.op == "call_function" else None


def _operands(node: Any, target: Any, count: int) -> tuple[Any, ...] | None:
    """The arguments of a node that calls `target` with just so many."""
    return node.args if _target(node) is target and len(node.args) == count and not node.kwargs else None


def _product(node: Any) -> tuple[float, list[Any], list[fx.Node]]:
    """A node as a number times other nodes, and the nodes of that multiplication."""
    if isinstance(node, (int, float)) and not isinstance(node, bool):
        return float(node), [], []
    if pair := _operands(node, operator.mul, 2):
        (a, left, seen), (b, right, also) = map(_product, pair)
        return a * b, left + right, [*seen, *also, node]
    if (pair := _operands(node, operator.truediv, 2)) and isinstance(pair[1], (int, float)) and pair[1]:
        number, rest, seen = _product(pair[0])
        return number / pair[1], rest, [*seen, node]
    if single := _operands(node, operator.neg, 1):
        number, rest, seen = _product(single[0])
        return -number, rest, [*seen, node]
    return 1.0, [node], []


def _terms(node: Any) -> tuple[list[tuple[float, list[Any]]], list[fx.Node]]:
    """A node as a sum of products, and the nodes of that arithmetic."""
    for target, sign in ((operator.add, 1.0), (operator.sub, -1.0)):
        if pair := _operands(node, target, 2):
            (left, seen), (right, also) = map(_terms, pair)
            return left + [(sign * number, rest) for number, rest in right], [*seen, *also, node]
    number, rest, seen = _product(node)
    return [(number, rest)], seen


# mean + exp(logvar / 2) * noise


def _find_sample(last: fx.Node) -> Found | None:
    pair = _operands(last, operator.add, 2)
    for mean, product in (pair, pair[::-1]) if pair else ():
        number, factors, seen = _product(product)
        if number != 1 or len(factors) != 2 or not isinstance(mean, fx.Node):
            continue
        for std, noise in (factors, factors[::-1]):
            logvar = _logvar(std)
            if logvar is not None and isinstance(noise, fx.Node):
                inner = _product(std.args[0])[2]
                return Found((*inner, std, *seen, last), (mean, logvar, noise))
    return None


def _logvar(std: Any) -> fx.Node | None:
    """l, if the node is exp(l / 2)."""
    exponent = _operands(std, torch.exp, 1)
    half, logvar, _ = _product(exponent[0]) if exponent else (0.0, [], [])
    return logvar[0] if half == 0.5 and len(logvar) == 1 and isinstance(logvar[0], fx.Node) else None


def draw_like_logvar(graph: fx.Graph) -> None:
    """Draw noise like the log-variance, which stays, instead of like the standard deviation: the same noise."""
    for node in graph.nodes:
        if _target(node) is torch.randn_like and (logvar := _logvar(node.args[0])) is not None:
            node.args = (logvar, *node.args[1:])


def _sample(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    if _alike(mean, logvar, noise):
        return ops.reparameterize(mean, logvar, noise=noise)
    return mean + torch.exp(0.5 * logvar) * noise


def _alike(*tensors: Any) -> bool:
    """Whether genmod's ops take them together."""
    first = tensors[0]
    kinds = {(t.shape, t.dtype, t.device) for t in tensors if isinstance(t, Tensor)}
    whole = all(isinstance(t, Tensor) for t in tensors) and len(kinds) == 1
    return whole and first.is_floating_point() and first.dim() > 0 and first.numel() > 0


# -1/2 sum(1 + logvar - mean² - exp(logvar))

_REDUCTIONS: dict[Any, str] = {torch.sum: "sum", torch.mean: "mean"}


def _find_kl(last: fx.Node) -> Found | None:
    number, rest, seen = _product(last)
    reduced = rest[0] if len(rest) == 1 else None
    if not seen or _target(reduced) not in _REDUCTIONS:
        return None
    assert isinstance(reduced, fx.Node)
    dims = (*reduced.args[1:], *reduced.kwargs.values())
    if len(dims) > 1 or not set(reduced.kwargs) <= {"dim"} or (dims and _target(reduced) is torch.mean):
        return None
    terms, arithmetic = _terms(reduced.args[0])
    logvar = next((node.args[0] for _, rest in terms for node in rest if _operands(node, torch.exp, 1)), None)
    squares = [_square(rest) for _, rest in terms]
    mean = next((of for of, _ in filter(None, squares)), None)
    if len(terms) != 4 or logvar is None or mean is None:
        return None
    # By what each term is: a constant, the log-variance, its exponential, a square.
    kinds = {
        "1" if not rest else "l" if rest == [logvar] else "m" if square else "e" if _is_exp(rest, logvar) else "": n
        for (n, rest), square in zip(terms, squares, strict=True)
    }
    scale = number * kinds.get("m", 0.0)
    if scale <= 0 or {kind: number * n / scale for kind, n in kinds.items()} != {"1": -1, "l": -1, "m": 1, "e": 1}:
        return None
    powers = [node for square in filter(None, squares) for node in square[1]]
    exponentials = [node for _, rest in terms for node in rest if _operands(node, torch.exp, 1)]
    inner = (*powers, *exponentials, *arithmetic, reduced, *seen)
    return Found(inner, (mean, logvar, _REDUCTIONS[_target(reduced)], dims[0] if dims else None, 2 * scale))


def _is_exp(rest: list[Any], logvar: Any) -> bool:
    return len(rest) == 1 and _operands(rest[0], torch.exp, 1) == (logvar,)


def _square(rest: list[Any]) -> tuple[Any, list[fx.Node]] | None:
    """What a product is the square of, and the nodes of that beyond multiplication."""
    if len(rest) == 2 and rest[0] is rest[1]:
        return rest[0], []
    if len(rest) != 1:
        return None
    if (pair := _operands(rest[0], operator.pow, 2)) and pair[1] == 2:
        return pair[0], rest
    single = _operands(rest[0], torch.square, 1)
    return (single[0], rest) if single else None


def _kl(mean: Tensor, logvar: Tensor, reduction: Any, dim: Any, scale: float) -> Tensor:
    per_sample = dim in (1, -1, (1,), (-1,), [1], [-1]) and isinstance(mean, Tensor) and mean.dim() == 2
    if _alike(mean, logvar) and (dim is None or per_sample):
        kl = ops.gaussian_kl(mean, logvar, reduction="batch" if per_sample else reduction).to(mean.dtype)
        return kl if scale == 1 else scale * kl
    each = 1 + logvar - mean**2 - torch.exp(logvar)
    total = torch.mean(each) if reduction == "mean" else torch.sum(each) if dim is None else torch.sum(each, dim)
    return -0.5 * scale * total


# Group norm of the functional interface, and an activation.


def _find_group_norm(last: fx.Node) -> Found | None:
    act = function_step(last)
    known = act is not None and isinstance(act, activations.MODULES) and not activations.why_not(act)
    norm = last.args[0] if known else None
    if _target(norm) is not F.group_norm:
        return None
    assert isinstance(norm, fx.Node) and act is not None
    names = ("input", "num_groups", "weight", "bias", "eps")
    given = {"weight": None, "bias": None, "eps": 1e-5} | dict(zip(names, norm.args, strict=False)) | norm.kwargs
    return Found((norm, last), (*(given[name] for name in names), *activations.options(act)))


def _group_norm(
    x: Tensor, num_groups: int, weight: Any, bias: Any, eps: float, activation: Activation, negative_slope: float
) -> Tensor:
    if x.dim() < 2 or x.shape[1] % num_groups or not eps > 0 or why_stock(x, x.shape[1], weight, bias):
        return apply(activation, F.group_norm(x, num_groups, weight, bias, eps), negative_slope)
    options: dict[str, Any] = {"activation": activation, "negative_slope": negative_slope}
    y = ops.group_norm_act(widened(x), num_groups, weight, bias, eps, **options)
    assert isinstance(y, Tensor), "a pair comes with a residual only"
    return y


# x / 1.0, which Stable Diffusion's blocks do.

_ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.truediv}


def _find_division(last: fx.Node) -> Found | None:
    pair = _operands(last, operator.truediv, 2)
    if not pair or not isinstance(pair[0], fx.Node) or not isinstance(pair[1], (int, float)) or pair[1] != 1:
        return None
    # What comes out is no copy any more: only where nobody else has what goes in, or nobody can write to it.
    fresh = _target(pair[0]) in _ARITHMETIC and len(pair[0].users) == 1
    read = all(_target(user) in _ARITHMETIC for user in last.users)
    return Found((last,), (pair[0],)) if fresh or read else None


def _division(x: Tensor) -> Tensor:
    return x if isinstance(x, Tensor) and x.is_floating_point() else x / 1.0


BOUND = "error at most twice stock's own"
EXPRESSIONS: tuple[Expression, ...] = (
    Expression(
        name="group_norm_act",
        what="F.group_norm + activation",
        became="group norm and activation in one pass",
        exactness="reassociated",
        bound=BOUND,
        find=_find_group_norm,
        call=_group_norm,
    ),
    Expression(
        name="reparameterize",
        what="mean + noise * exp(logvar / 2)",
        became="one pass, with the noise that torch draws",
        exactness="reassociated",
        bound=BOUND,
        find=_find_sample,
        call=_sample,
    ),
    Expression(
        name="gaussian_kl",
        what="-1/2 sum(1 + logvar - mean^2 - exp(logvar))",
        became="one pass, exact near the prior",
        exactness="reassociated",
        bound=BOUND,
        find=_find_kl,
        call=_kl,
    ),
    Expression(
        name="divide_by_one",
        what="x / 1.0",
        became="x",
        exactness="bit-equal",
        bound="none",
        find=_find_division,
        call=_division,
    ),
)
