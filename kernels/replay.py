"""Remembers what a launcher did, and does the same again for inputs of the same description.

A launcher decides in Python how to cut a launch, and Triton decides once more, from every argument, which compiled
kernel that is. On a GPU that is the time of a whole small op, several times over. Both follow from the inputs' shapes,
strides, dtypes and alignment and from the options alone, so they are decided once: the first call with a description is
watched, and the following ones allocate what it allocated, call the operators that it called, and start the kernels
that it started.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genmod.kernels import launch

#: Descriptions kept per op; more of them means sizes that never come back.
_LIMIT = 1024

_ALLOCATES = frozenset({"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"})


class _Slot(NamedTuple):
    """Where a tensor is in the list of those that a call has seen: its inputs first, then what was made, in order."""

    number: int


class _Allocation(NamedTuple):
    """Room for a tensor."""

    shape: torch.Size
    stride: tuple[int, ...]
    options: dict[str, Any]
    makes: int = 1

    def run(self, slots: list[Any]) -> None:
        slots.append(torch.empty_strided(self.shape, self.stride, **self.options))


class _Operation(NamedTuple):
    """An operator of PyTorch, with slots for tensors."""

    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    makes: int  # so many results
    is_view: bool

    def run(self, slots: list[Any]) -> None:
        options = {name: _filled(value, slots) for name, value in self.options.items()}
        result = self.function(*_filled(self.arguments, slots), **options)
        slots.extend((result,) if isinstance(result, Tensor) else result)


class _Skipped(NamedTuple):
    """A view that only kernels look at, whose address follows from that of its base."""

    makes: int

    def run(self, slots: list[Any]) -> None:
        slots.extend([None] * self.makes)


class _Start(NamedTuple):
    """A kernel to start, and those of its arguments that are pointers: (place, slot, bytes beyond that slot's)."""

    start: Callable[..., None]
    arguments: list[Any]
    pointers: tuple[tuple[int, int, int], ...]

    def run(self, slots: list[Any]) -> None:
        arguments = self.arguments.copy()
        for place, slot, beyond in self.pointers:
            arguments[place] = slots[slot].data_ptr() + beyond
        self.start(*arguments, stream=launch.current_stream())


class _Tape(NamedTuple):
    """What a call did."""

    device: torch.device
    read: tuple[int, ...]  # which inputs are tensors
    steps: tuple[Any, ...]
    results: Any

    def run(self, inputs: tuple[Any, ...]) -> Any:
        slots = [inputs[i] for i in self.read]
        with launch.on(self.device):
            for step in self.steps:
                step.run(slots)
        return _filled(self.results, slots)


def remembering(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """`launcher`, which takes tensors and options and returns a tensor or several, with a memory."""
    tapes: dict[tuple[Any, ...], _Tape] = {}

    @functools.wraps(launcher)
    def call(*inputs: Any) -> Any:
        kind = next(v.device.type for v in inputs if isinstance(v, Tensor))
        if torch.is_autocast_enabled(kind):  # operators would be cast anew, by whether it is on now
            with torch.autocast(kind, enabled=False):
                return call(*inputs)
        key = _description(inputs)
        if (tape := tapes.get(key)) is not None:
            return tape.run(inputs)
        if launch.is_recording():
            return launcher(*inputs)
        if len(tapes) >= _LIMIT:
            tapes.clear()
        results, tapes[key] = _watch(launcher, inputs)
        return results

    return call


def _description(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """All that launchers and Triton look at. Of alignment that is whether it is 16 bytes."""
    return tuple(
        [
            (v.shape, v.stride(), v.dtype, v.device, v.data_ptr() % 16)
            if isinstance(v, Tensor)
            else v
            if not isinstance(v, list)
            else tuple(v)
            for v in inputs
        ]
    )


def _filled(value: Any, slots: list[Any]) -> Any:
    """`value` with tensors in place of slots."""
    kind = type(value)
    if kind is _Slot:
        return slots[value.number]
    if kind is tuple or kind is list:
        return kind([_filled(v, slots) for v in value])
    return value


# The first call.


class _Watch(TorchDispatchMode):
    """Sees operators of PyTorch and launches, in order, and keeps all tensors, so that no address comes twice."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.tensors: list[Tensor | None] = list(tensors)
        self.inputs = len(self.tensors)
        self.steps: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments, options = self.slots(args), {name: self.slots(value) for name, value in (kwargs or {}).items()}
        result = func(*args, **(kwargs or {}))
        if func._schema.name.removeprefix("aten::") in _ALLOCATES:
            self.allocated(result)
            return result
        made = (result,) if isinstance(result, Tensor) else tuple(result)
        # By its schema `contiguous` is a view too, but only where there is nothing to do.
        is_view = func.is_view and all(self.slot_of_memory(t) is not None for t in made if t is not None)
        self.steps.append(_Operation(func, arguments, options, len(made), is_view))
        self.tensors.extend(made)
        return result

    def allocated(self, tensor: Tensor) -> None:
        """Room for a tensor was made."""
        options = {"dtype": tensor.dtype, "device": tensor.device}
        self.steps.append(_Allocation(tensor.shape, tensor.stride(), options))
        self.tensors.append(tensor)

    def launched(self, made: launch.Launch, compiled: Any) -> None:
        """Told of a launch."""
        arguments = [made.arguments[name] for name in made.kernel.arg_names]
        pointers = tuple((i, *self.address(v)) for i, v in enumerate(arguments) if isinstance(v, Tensor))
        for place, _, _ in pointers:
            arguments[place] = None
        self.steps.append(_Start(compiled[(made.programs, 1, 1)], arguments, pointers))

    def slots(self, value: Any) -> Any:
        """`value` with slots in place of tensors."""
        if isinstance(value, Tensor):
            wanted = _identity(value)
            # From the end: of what has no elements, and so no address, the latest is meant.
            return _Slot(next(i for i in reversed(range(len(self.tensors))) if _identity(self.tensors[i]) == wanted))
        if isinstance(value, torch.Size):
            return value
        return type(value)(map(self.slots, value)) if isinstance(value, (tuple, list)) else value

    def results(self, value: Any) -> Any:
        """Slots of what a launcher returns, a tensor or several: fresh ones, so none is an input or another result. One
        without elements that it returns twice becomes two."""
        taken = set(range(self.inputs))
        slots = []
        for tensor in (value,) if isinstance(value, Tensor) else value:
            wanted = _identity(tensor)
            free = (i for i, t in enumerate(self.tensors) if i not in taken and _identity(t) == wanted)
            if (number := next(free, None)) is None:
                assert not tensor.numel(), "a launcher returns an input, or one tensor twice"
                number = len(self.tensors)
                self.allocated(tensor)
            taken.add(number)
            slots.append(_Slot(number))
        return slots[0] if isinstance(value, Tensor) else tuple(slots)

    def slot_of_memory(self, tensor: Tensor) -> int | None:
        """The first slot in the same memory."""
        storage = tensor.untyped_storage().data_ptr()
        known = ((i, t) for i, t in enumerate(self.tensors) if t is not None)
        return next((i for i, t in known if t.untyped_storage().data_ptr() == storage), None)

    def address(self, tensor: Tensor) -> tuple[int, int]:
        """A slot, and how many bytes beyond it the tensor begins."""
        slot = self.slot_of_memory(tensor)
        base = None if slot is None else self.tensors[slot]
        assert slot is not None and base is not None, "a kernel looks at what nobody gave or made"
        return slot, tensor.data_ptr() - base.data_ptr() if tensor.numel() else 0  # nothing is nowhere


def _identity(tensor: Tensor | None) -> tuple[Any, ...] | None:
    return None if tensor is None else (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _watch(launcher: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[Any, _Tape]:
    inputs = _apart(inputs)
    read = tuple(i for i, v in enumerate(inputs) if isinstance(v, Tensor))
    watch = _Watch(inputs[i] for i in read)
    with watch, launch.telling(watch.launched):
        results = launcher(*inputs)
    places = watch.results(results)
    return results, _Tape(inputs[read[0]].device, read, _needed(watch.steps, places, len(read)), places)


def _apart(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs, those that share memory with an earlier one in memory of their own: an address then tells whose it
    is, also for later calls, whose inputs share memory in other ways."""
    seen: set[int] = set()

    def apart(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        storage = value.untyped_storage()
        if storage.data_ptr() in seen and storage.nbytes():
            storage = storage.clone()
            value = value.new_empty(0).set_(storage, value.storage_offset(), value.shape, value.stride())
        seen.add(storage.data_ptr())
        return value

    return tuple(map(apart, inputs))


def _needed(steps: list[Any], results: Any, inputs: int) -> tuple[Any, ...]:
    """The steps, without views that no operator and no result needs. Slots keep their numbers."""
    wanted, kept = set(_numbers(results)), []
    end = inputs + sum(getattr(step, "makes", 0) for step in steps)
    for step in reversed(steps):
        if isinstance(step, _Operation):
            end -= step.makes
            if step.is_view and wanted.isdisjoint(range(end, end + step.makes)):
                step = _Skipped(step.makes)
            else:
                wanted.update(_numbers((step.arguments, tuple(step.options.values()))))
        elif isinstance(step, _Allocation):
            end -= 1
        kept.append(step)
    return tuple(reversed(kept))


def _numbers(value: Any) -> Iterator[int]:
    """Those of all slots in it."""
    if type(value) is _Slot:
        yield value.number
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _numbers(each)
