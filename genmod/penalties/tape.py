"""Recording a critic on a tape, and running the tape backwards and again.

A `TorchFunctionMode` watches the critic's own forward, so parametrisations, weight and spectral normalisation, hooks
and Python control flow work by running: what does not depend on x is computed as always, once, and is a constant of the
tape with its autograd graph. What depends on x becomes a node of a `torch.fx.Graph`, an operation of `affine`.

Values that depend on x are handed to the critic's code as leaves that require a gradient. Something computed from them
out of the mode's sight would carry them in its autograd graph, and is found there before it is taken for a constant.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph
from torch.fx.node import Node, map_aggregate
from torch.overrides import TorchFunctionMode

from genmod.penalties import rules
from genmod.penalties.affine import Operation, Unsupported, Values
from genmod.penalties.outputs import one_per_sample


class Tape:
    """A critic at a batch of samples: a graph of affine operations, with the masks frozen at the samples.

    Attributes:
        graph: the operations, in order; each node's is `node.meta["operation"]`.
        output: the critic's output at the samples, `[N]`.
        parameters: everything with a gradient that the operations use, as they use it.
    """

    def __init__(self, graph: Graph, x: Tensor, shape: torch.Size, output: Tensor) -> None:
        self.graph, self.x, self.shape, self.output = graph, x, shape, output
        self._input, *self._steps = graph.nodes
        self.parameters: list[Tensor] = list(
            {id(p): p for node in self._steps for p in _operation(node).parameters}.values()
        )

    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def input_gradient(self) -> Tensor:
        """The gradient of each sample's output by that sample; keeps the signal at every operation with parameters."""
        signals = {self._steps[-1]: torch.ones(self.shape, dtype=self.output.dtype, device=self.output.device)}
        for node in reversed(self._steps):
            signal, step = signals.pop(node), _operation(node)
            if step.parameters:
                node.meta["signal"] = signal
            inputs = {n: torch.empty_strided(*n.meta["geometry"], **n.meta["kind"]) for n in step.operands}
            for operand, share in step.adjoint(signal, inputs).items():
                signals[operand] = signals[operand] + share if operand in signals else share
        return signals.get(self._input, torch.zeros_like(self.x))

    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def replay(self, c: Tensor, at: Tensor, keep: bool) -> list[Tensor | None]:
        """Gradients of `parameters` from a run at another point, with constants scaled by `c` and the signals of
        `input_gradient`. Masks and signals are let go on the way, unless `keep`."""
        values: Values = {self._input: at}
        last_use = {operand: node for node in self._steps for operand in _operation(node).operands}
        grads: dict[int, Tensor] = {}
        for node in self._steps:
            step = _operation(node)
            values[node], found = step.replay(c, node.meta.get("signal"), values)
            for parameter, grad in zip(step.parameters, found, strict=True):
                known = grads.get(id(parameter))
                grads[id(parameter)] = grad if known is None else known + grad
            for operand in {*step.operands}:
                if last_use[operand] is node:
                    del values[operand]
            if not keep:
                node.meta.clear()
        return [grads.get(id(p)) for p in self.parameters]


def _operation(node: Node) -> Operation:
    return node.meta["operation"]


def record(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tape:
    """Run the critic at `x` and keep its tape; raises Unsupported."""
    recorder = _Recorder(x)
    with torch.enable_grad(), recorder:
        output = critic(recorder.x)
    return recorder.finish(output)


class _Recorder(TorchFunctionMode):
    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.graph = Graph()
        self.batch = x.shape[0]
        self.known: dict[int, tuple[weakref.ref[Tensor], Node]] = {}
        self.overwritten: set[Node] = set()
        self.values: weakref.WeakValueDictionary[Node, Tensor] = weakref.WeakValueDictionary()
        self.x = x.detach()
        self._register(self.graph.placeholder("x"), self.x)

    def _register(self, node: Node, value: Tensor) -> Tensor:
        node.meta["geometry"] = (value.shape, value.stride())
        node.meta["kind"] = {"dtype": value.dtype, "device": value.device}
        value.requires_grad_()
        self.known[id(value)] = (weakref.ref(value), node)
        self.values[node] = value
        return value

    def _node(self, value: Any) -> Any:
        """The node of what depends on x; anything else as it is."""
        if not isinstance(value, Tensor):
            return value
        reference, node = self.known.get(id(value), (None, None))
        if node is None or reference is None or reference() is not value:
            return value
        if node in self.overwritten:
            raise Unsupported("a value is used after it was changed in place")
        return node

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        nodes: list[Node] = []

        def replace(value: Any) -> Any:
            value = self._node(value)
            if isinstance(value, Node):
                nodes.append(value)
            return value

        new_args, new_kwargs = map_aggregate((args, kwargs), replace)
        if not nodes:
            return function(*args, **kwargs)
        if function.__name__ in rules.METADATA:
            result = function(*args, **kwargs)
            if isinstance(result, Tensor):
                raise Unsupported(
                    f"an attribute of a value that depends on x was taken as a tensor of shape {tuple(result.shape)}"
                )
            return result
        return self._record(function, new_args, new_kwargs)

    def _record(self, function: Any, args: Any, kwargs: Any) -> Tensor:
        name = function.__name__
        map_aggregate((args, kwargs), self._must_not_hide_x)
        if name == "batch_norm":
            return self._batch_norm(*args, **kwargs)
        args, kwargs, casts = self._autocast(name, args, kwargs)
        values = dict(self.values)
        try:
            function, args, kwargs, changes_input = _out_of_place(function, args, kwargs)
            step = rules.operation(function, args, kwargs, values)
        except (TypeError, IndexError, AttributeError) as error:
            raise Unsupported(f"{name} was called in an unknown way: {error}") from error
        with torch.no_grad(), torch.autocast(self.x.device.type, enabled=False):
            output = step.forward(values)
        del casts  # kept alive until they were used
        first = values[step.operands[0]]
        if output.dim() == 0 or output.shape[0] != self.batch:
            raise Unsupported(f"{name} turns shape {tuple(first.shape)} into {tuple(output.shape)}: the batch is gone")
        if changes_input:
            self._overwrite(first)
        node = self.graph.call_function(step.function, tuple(step.operands))
        node.meta["operation"] = step
        # A value that is handed out is a tensor of its own, even where the operation returned its operand.
        return self._register(node, output.detach())

    def _autocast(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any, list[Tensor]]:
        """What autocast would do to the operands: casts, which then are operations of their own."""
        device = self.x.device.type
        if name not in rules.AUTOCAST or not torch.is_autocast_enabled(device):
            return args, kwargs, []
        dtype = torch.get_autocast_dtype(device)
        casts: list[Tensor] = []

        def cast(value: Any) -> Any:
            if isinstance(value, Node) and self.values[value].dtype != dtype:
                casts.append(self._record(torch.Tensor.to, (value, dtype), {}))
                value = self._node(casts[-1])
            return value.to(dtype) if isinstance(value, Tensor) else value

        return *map_aggregate((args, kwargs), cast), casts

    def _overwrite(self, changed: Tensor) -> None:
        """Whoever still looks at this memory expects to see it changed; it is not."""
        for node, value in self.values.items():
            if value.untyped_storage().data_ptr() == changed.untyped_storage().data_ptr():
                self.overwritten.add(node)

    def _batch_norm(
        self, x: Any, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False,
        momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        if training or mean is None:
            raise Unsupported("batch normalisation in training mixes samples")
        scale = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
        shift = -mean * scale if bias is None else bias - mean * scale
        shape = (-1, *[1] * (self.values[x].dim() - 2))
        scaled = self._record(torch.mul, (x, scale.view(shape)), {})
        return self._record(torch.add, (self._node(scaled), shift.view(shape)), {})

    def _must_not_hide_x(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.grad_fn is not None:
            seen, pending = set(), [value.grad_fn]
            while pending:
                function = pending.pop()
                if function in seen:
                    continue
                seen.add(function)
                leaf = getattr(function, "variable", None)
                if leaf is not None and id(leaf) in self.known and self.known[id(leaf)][0]() is leaf:
                    raise Unsupported("x passes through an operation that torch functions do not show")
                pending += [f for f, _ in function.next_functions if f is not None]
        return value

    def finish(self, output: Any) -> Tape:
        values = one_per_sample(output, self.batch)
        node = self._node(output)
        if not isinstance(node, Node):
            raise Unsupported("the critic's output does not come from its input by operations known here")
        for other in reversed(list(self.graph.nodes)):
            if other is not node and other.op != "placeholder" and not other.users:
                self.graph.erase_node(other)  # computed, and never used for the output
        return Tape(self.graph, self.x.detach(), output.shape, values.detach())


def _out_of_place(function: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any, bool]:
    """The same call without its effect on the first operand, and whether it had one."""
    name = function.__name__
    if name.endswith("_") and not name.startswith("__"):
        return getattr(torch.Tensor, name[:-1]), args, kwargs, True
    if isinstance(function, FunctionType) and "inplace" in inspect.signature(function).parameters:
        call = inspect.signature(function).bind(*args, **kwargs)
        changes_input = bool(call.arguments.pop("inplace", False))
        return function, call.args, call.kwargs, changes_input
    return function, args, kwargs, False
