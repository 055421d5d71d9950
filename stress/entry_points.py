"""Malformed tensors into the C++ entry points, below every check that Python makes.

Real calls of each dispatcher op are recorded from the samples of the specs, and one to three of their arguments are
malformed. What may happen: an ordinary exception; or a result, which then has the shape and dtype of the reference's,
where that accepts the call too. What may not: a crash, a read or write outside (when run on the sanitized build), and
waiting for ever.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import torch
from torch import Tensor

from genmod import backends
from genmod.specs import specs
from genmod.testing import battery

from . import isolation, malformed
from .report import Outcome

#: What an op may raise. An AssertionError or a KeyError would be an accident, but a clean one.
CLEAN = (
    RuntimeError,
    TypeError,
    ValueError,
    IndexError,
    AttributeError,
    AssertionError,
    KeyError,
    MemoryError,
)


def corpus(every: int = 3) -> dict[str, list[tuple[Any, tuple[Any, ...]]]]:
    """Well-formed calls of every dispatcher op, of each `every`-th sample."""
    calls: dict[str, list[tuple[Any, tuple[Any, ...]]]] = {}
    for number, spec in enumerate(specs().values()):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            step = every if dtype == torch.float32 else 4 * every
            for sample in itertools.islice(
                battery.samples(spec, torch.device("cpu"), dtype), number % step, None, step
            ):
                for op, args in battery.dispatcher_calls(spec, sample):
                    frozen = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
                    calls.setdefault(op._schema.name.split("::")[1], []).append((op, frozen))
    return calls


class Attack:
    """Case number `index` is always the same one, whatever ran before."""

    def __init__(self, seed: int, *, huge: bool) -> None:
        self.seed, self.huge = seed, huge
        self.calls = corpus()
        self.names = sorted(self.calls)

    def make(self, index: int) -> tuple[str, Any, list[Any]]:
        rng = random.Random(f"{self.seed}/{index}")
        name = self.names[index % len(self.names)]
        op, given = rng.choice(self.calls[name])
        args = list(given)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            malformed.argument(rng, args, rng.randrange(len(args)))
        return name, op, args

    def describe(self, index: int) -> str:
        name, _, args = self.make(index)
        return f"case {index}: {name}({', '.join(map(_text, args))})"

    def __call__(self, index: int) -> str:
        name, op, args = self.make(index)
        if _endless(args) and not self.huge:
            return "skipped"
        try:
            with torch.no_grad():
                got = _tensors(op(*args))
        except CLEAN:
            return "refused"
        except Exception as error:
            return f"{self.describe(index)}: raised {type(error).__name__}: {error}"
        if not all(a.device.type == "cpu" for a in args if isinstance(a, Tensor)):
            return "ok"  # the fake's business
        return self.compare(name, args, got) or "ok"

    def compare(self, name: str, args: list[Any], got: list[Tensor]) -> str:
        """What is wrong with the form of a result, or an empty string. Values are the business of `properties`: the
        reference computes again what a kernel is handed, such as statistics, and here that is anything."""
        try:
            with torch.no_grad():
                expected = _tensors(backends.implementation("reference", name)(*args))
        except Exception:
            return ""
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"output {i} is {_text(a)}, the reference's {_text(b)}"
        return ""


def _tensors(value: Any) -> list[Tensor]:
    """Outputs, read from end to end: what lies outside of memory shows now."""
    return [t.clone() for t in battery.as_tuple(value)]


def _endless(args: list[Any]) -> bool:
    return any(isinstance(a, Tensor) and a.numel() >= malformed.HUGE for a in args)


def _text(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)[:40]
    words = [str(value.dtype).removeprefix("torch."), str(list(value.shape))]
    if value.layout is not torch.strided:
        return " ".join([*words, str(value.layout)])
    if not value.is_contiguous():
        words.append(f"strides {list(value.stride())}")
    if value.device.type != "cpu":
        words.append(value.device.type)
    return " ".join(words)


def run(seed: int, cases: int, *, huge: bool, name: str) -> Outcome:
    """So many cases in child processes."""
    torch.set_num_threads(1)
    outcome = Outcome("entry points", name)
    with outcome:
        attack = Attack(seed, huge=huge)
        results, died = isolation.run(attack, cases)
        for index, text in sorted(results.items()):
            outcome.cases += text != "skipped"
            outcome.refused += text == "refused"
            if text not in ("ok", "refused", "skipped"):
                outcome.fail(f"{attack.describe(index)}: {text}")
        for index, why in died:
            outcome.cases += 1
            outcome.fail(f"{attack.describe(index)}: {why}")
    return outcome
