"""What a model does with given inputs: its outputs, gradients and buffers, each under a name."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from genmod.comparison.noise import SameNoise

#: What is looked at of an object that is neither a container nor a dataclass, such as a distribution.
_STATISTICS = ("mean", "logvar", "loc", "scale", "probs", "logits")


@dataclasses.dataclass
class Inputs:
    """The arguments of a call, in a form that can be cloned and cast."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, inputs: Any) -> Inputs:
        """From a tensor, a sequence of positional arguments, or a mapping of keyword arguments."""
        if isinstance(inputs, Inputs):
            return inputs
        if isinstance(inputs, Mapping):
            if not all(isinstance(name, str) for name in inputs):
                raise TypeError(f"inputs: got the keys {list(inputs)}, expected names of arguments")
            return cls((), dict(inputs))
        if isinstance(inputs, (tuple, list)):
            return cls(tuple(inputs), {})
        if isinstance(inputs, Tensor):
            return cls((inputs,), {})
        raise TypeError(
            f"inputs: got {type(inputs).__name__}, expected a tensor, a sequence of arguments, or a mapping"
        )

    def named(self) -> dict[str, Tensor]:
        """The tensors in it."""
        named = {f"{i}": value for i, value in enumerate(self.args)} | self.kwargs
        return {path: t for name, value in named.items() for path, t in named_tensors(value, name).items()}

    def clone(self, dtype: torch.dtype | None = None, *, differentiable: bool = False) -> Inputs:
        """A copy of every tensor, the floating ones in `dtype` if given."""

        def copied(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            fresh = value.detach().clone()
            if not value.is_floating_point():
                return fresh
            fresh = fresh if dtype is None else fresh.to(dtype)
            return fresh.requires_grad_(differentiable)

        args, kwargs = pytree.tree_map(copied, (self.args, self.kwargs))
        return Inputs(args, kwargs)


@dataclasses.dataclass
class Observation:
    """Tensors by name, for each kind of thing; `draws` is how often the model drew noise."""

    outputs: dict[str, Tensor]
    input_gradients: dict[str, Tensor]
    parameter_gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    draws: int


def observe(model: nn.Module, inputs: Inputs, *, dtype: torch.dtype, backward: bool, seed: int) -> Observation:
    """Run the model once, forward and, if asked, backward from fixed gradients of the outputs.

    Buffers are those that the run changed. The noise that the model draws depends on the seed alone. The model's
    buffers and the `.grad` of its parameters are left as the run leaves them: give it a copy.
    """
    given = inputs.clone(dtype, differentiable=backward)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    noise = SameNoise()
    with seeded(seed), contextlib.nullcontext() if backward else torch.no_grad():
        with noise:
            outputs = named_tensors(model(*given.args, **given.kwargs), "")
        if not outputs:
            raise ValueError("model: got no tensor in its output, so there is nothing to compare")
        if backward:
            tensors, gradients = cotangents(list(outputs.values()), seed)
            with noise:  # checkpointed layers draw again
                torch.autograd.backward(tensors, gradients)
    named = given.named()
    return Observation(
        {name: t.detach() for name, t in outputs.items()},
        {name: t.grad for name, t in named.items() if t.grad is not None},
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        {n: b.detach().clone() for n, b in model.named_buffers() if n not in before or not torch.equal(b, before[n])},
        noise.draws,
    )


def cotangents(outputs: list[Tensor], seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """The differentiable ones of the outputs, and a fixed random gradient for each: exact in bfloat16."""
    tensors = [t for t in outputs if t.requires_grad]
    if not tensors:
        raise ValueError("backward: no output depends on an input or parameter that requires grad; use backward=False")
    generator = torch.Generator().manual_seed(seed)
    shapes = [t.shape for t in tensors]
    return tensors, [
        torch.randn(shape, generator=generator).bfloat16().to(t) for shape, t in zip(shapes, tensors, strict=True)
    ]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's generators at a seed inside, and where they were afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def named_tensors(value: Any, prefix: str) -> dict[str, Tensor]:
    """Every tensor in a model's output by its path: containers, registered ones too, dataclasses, distributions."""
    if isinstance(value, Tensor):
        return {prefix or "output": value}
    if isinstance(value, Mapping):  # before pytree, which takes no subclass of a dictionary
        return _merged((f"{prefix}[{key!r}]", item) for key, item in value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _merged((f"{prefix}.{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value))
    if hasattr(value, "_fields"):  # a named tuple
        return _merged((f"{prefix}.{name}", getattr(value, name)) for name in value._fields)
    if isinstance(value, (tuple, list)):
        return _merged((f"{prefix}[{i}]", item) for i, item in enumerate(value))
    paths, _ = pytree.tree_flatten_with_path(value)
    if len(paths) != 1 or paths[0][0]:
        return _merged((prefix + pytree.keystr(path), item) for path, item in paths)
    statistics = ((f"{prefix}.{name}", getattr(value, name, None)) for name in _STATISTICS)
    return {name: t for name, t in statistics if isinstance(t, Tensor)}


def _merged(items: Iterator[tuple[str, Any]] | Any) -> dict[str, Tensor]:
    return {name: t for path, item in items for name, t in named_tensors(item, path).items()}
