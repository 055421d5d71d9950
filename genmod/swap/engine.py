"""Walking a model, swapping what the table of patterns covers, and undoing it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from genmod.swap import conditions, functional, gains
from genmod.swap.classes import class_of, is_swapped, swap, unswap
from genmod.swap.pattern import ALLOW, ModulePattern, Pattern, RunPattern, imported, name_of
from genmod.swap.patterns import MODULE_PATTERNS, RUN_PATTERNS
from genmod.swap.report import LeftAlone, Swap, SwapReport
from genmod.swap.sequential import FusedSequential, Run, Runs, why_not

Filter = Callable[[nn.Module, str], bool]
_HALF = (torch.bfloat16, torch.float16)


def accelerate(
    model: nn.Module,
    *,
    filter_fn: Filter | None = None,
    training: bool | None = None,
    allow: Iterable[str] = ("exact",),
) -> SwapReport:
    """Replace, in place, what genmod computes faster than PyTorch. The model stays the same object, of the same class.

    Modules keep their identity, parameters, buffers, hooks and places; only classes change, to subclasses of their own.
    So state_dict keys, optimisers, `isinstance`, train/eval, deepcopy, pickling and wrapping in DDP or FSDP are as they
    were. Nothing global is patched. A call that a swapped module does not cover takes the module's own path, with one
    warning. A second call swaps only what is new. :func:`restore` undoes it.

    Args:
        model: any module.
        filter_fn: `(module, path) -> bool`, asked of each module that would be replaced, and of every module of a run
            in an `nn.Sequential`; swapped is where it is true. All by default.
        training: whether to choose by the gains of training (forward and backward) or of evaluation; by default
            `model.training`. What was swapped works in both modes.
        allow: words of :data:`genmod.swap.ALLOW`; "exact" is always included, "folded" and "critic" are more.

    Returns:
        What was swapped, how exact it is and what it was measured to gain; and what was left alone and why.

    Raises:
        TypeError: `model` is no module, `filter_fn` cannot be called, or `training` is no bool.
        ValueError: an unknown word in `allow`.

    Warns:
        UserWarning: the filter accepted no module at all.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn: got {type(filter_fn).__name__}, expected a function of (module, path)")
    if training is not None and not isinstance(training, bool):
        raise TypeError(f"training: got {training!r}, expected True, False or None")
    words = (allow,) if isinstance(allow, str) else tuple(allow)
    for word in words:
        if word not in ALLOW:
            raise ValueError(f"allow: got {word!r}, expected words of {', '.join(ALLOW)}")
    walk = _Walk(model, filter_fn, model.training if training is None else training, frozenset((*words, "exact")))
    return walk.run()


def restore(model: nn.Module) -> nn.Module:
    """Undo :func:`accelerate`: every module has its own class again, and nothing of genmod is left in it.

    Args:
        model: the model, or a part of it; what was never swapped stays as it is.

    Returns:
        The same model.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    for module in model.modules():
        unswap(module)
    return model


@dataclass(frozen=True)
class _Place:
    """Modules that a pattern may take, and where they are."""

    path: str
    modules: tuple[nn.Module, ...]
    paths: tuple[str, ...]

    @property
    def what(self) -> str:
        return " + ".join(class_of(m).__name__ for m in self.modules)


class _Walk:
    """One call of `accelerate`."""

    def __init__(self, model: nn.Module, filter_fn: Filter | None, training: bool, allow: frozenset[str]) -> None:
        self.model, self.filter_fn, self.training, self.allow = model, filter_fn, training, allow
        self.report = SwapReport()
        self.accepted = self.already = False
        self.critical = 0
        self.before = _before(model)

    def run(self) -> SwapReport:
        for path, module in list(self._modules(self.model, "", set())):
            if is_swapped(module):
                self.already = True
                continue
            if isinstance(module, nn.Sequential):
                self._sequential(path, module)
            self._module(path, module)
            if not is_swapped(module) and functional.candidate(module):
                self._forward(path, module)
        self._conclude()
        return self.report

    def _modules(self, module: nn.Module, path: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
        """Each module once, with its path, but none in and under those that must not be touched."""
        if id(module) in seen:
            return
        seen.add(id(module))
        if why := conditions.opaque(module):
            self._leave(path, type(module).__name__, why)
            return
        yield path, module
        for name, child in module.named_children():
            yield from self._modules(child, f"{path}.{name}" if path else name, seen)

    def _leave(self, path: str, what: str, why: str) -> None:
        self.report.left_alone.append(LeftAlone(path or "(model)", what, why))

    def _conclude(self) -> None:
        report = self.report
        if self.critical and self.training:
            self._leave("", f"{self.critical} layers", f'needs allow=("exact", "critic"): {ALLOW["critic"]}')
        if report.swaps:
            return
        if self.already:
            report.note = "Accelerated already: nothing more to swap."
        elif self.filter_fn is not None and not self.accepted:
            report.note = "Nothing was swapped: filter_fn accepted no module that could be."
            warnings.warn("genmod.accelerate: filter_fn accepted no module that could be swapped", UserWarning, 4)
        else:
            report.note = "Nothing to swap in this model."

    # Choosing.

    def _accepts(self, place: _Place) -> bool:
        accepted = self.filter_fn is None or all(
            self.filter_fn(m, p) for m, p in zip(place.modules, place.paths, strict=True)
        )
        self.accepted = self.accepted or accepted
        return accepted

    def _why_not(self, pattern: Pattern, place: _Place, why: str) -> str:
        """Why not to swap: `why`, or what holds for all patterns; an empty string if nothing does."""
        for module in place.modules:
            why = why or conditions.unfit(module)
        gain = self._gain(pattern, place)
        if not why and gain is not None and gain < gains.WORTH_IT:
            mode = "training" if self.training else "evaluation"
            why = f"stock PyTorch is as fast there in {mode}: {gain:.2f}x measured"
        half = any(t.dtype in _HALF for m in place.modules for t in m.parameters())
        for word in (pattern.allow, pattern.allow_half if half else "exact"):
            if not why and word not in self.allow:
                why = f'needs allow=("exact", "{word}"): {ALLOW[word]}'
        return why

    def _gain(self, pattern: Pattern, place: _Place) -> float | None:
        for module in (*place.modules, self.model):
            tensor = next((t for t in module.parameters() if t.is_floating_point()), None)
            if tensor is not None:
                return gains.predicted(pattern.name, tensor.device.type, tensor.dtype, self.training)
        return gains.predicted(pattern.name, "cpu", torch.get_default_dtype(), self.training)

    def _note_swap(self, pattern: Pattern, place: _Place, what: str = "") -> None:
        gain = self._gain(pattern, place)
        self.report.swaps.append(
            Swap(place.path, pattern.name, what or place.what, pattern.became, pattern.exactness, pattern.bound, gain)
        )

    # One module.

    def _module(self, path: str, module: nn.Module) -> None:
        if is_swapped(module):  # as a Sequential, a moment ago
            return
        names = set(map(name_of, class_of(module).__mro__))
        place = _Place(path or "(model)", (module,), (path,))
        for pattern in MODULE_PATTERNS:
            if pattern.original not in names or not pattern.looks_for(module) or not self._accepts(place):
                continue
            if pattern.allow == "critic" and pattern.allow not in self.allow:
                self.critical += 1  # nearly every model has some: one line for all
                continue
            if why := self._why_not(pattern, place, self._module_unfit(pattern, module)):
                self._leave(path, place.what, why)
                continue
            swap(module, imported(pattern.mixin), pattern.name)
            self._note_swap(pattern, place)
            return

    def _module_unfit(self, pattern: ModulePattern, module: nn.Module) -> str:
        found = class_of(module)
        if name_of(found) != pattern.original:
            return f"what the forward of {found.__name__} computes is not known"
        if type(module) is not found:
            return "parametrised: its class is not its own"
        return conditions.overridden(module, (found,)) or pattern.why_not(module, self.before.get(id(module), ()))

    # A forward of its own.

    def _forward(self, path: str, module: nn.Module) -> None:
        decided: dict[str, bool] = {}  # one forward has several traces, and in each the same sites

        def accepts(site: functional.Site) -> bool:
            if site.key not in decided:
                paths = (path, *(f"{path}.{part}" if path else part for part in site.paths))
                place = _Place(path or "(model)", (module, *site.parts), paths)
                decided[site.key] = self._accepts(place) and self._site(site, place)
            return decided[site.key]

        try:
            plan = functional.plan_for(module, accepts)
        except functional.Impure as error:
            if not any(entry.path == (path or "(model)") for entry in self.report.left_alone):  # one reason is enough
                self._leave(path, class_of(module).__name__, str(error))
            return
        if plan is not None:
            functional.swap_forward(module, plan)

    def _site(self, site: functional.Site, place: _Place) -> bool:
        why = self._why_not(site.pattern, place, site.why_not)
        if why:
            self._leave(place.path, site.what, why)
        else:
            self._note_swap(site.pattern, place, site.what)
        return not why

    # Runs in a Sequential.

    def _sequential(self, path: str, module: nn.Sequential) -> None:
        runs, start = [], 0
        while start < len(module):
            pattern = self._run_at(path, module, start)
            if pattern is not None:
                runs.append(Run(start, pattern.name))
            start += 1 if pattern is None else len(pattern.parts)
        if runs:
            swap(module, FusedSequential, Runs(tuple(runs)))

    def _run_at(self, path: str, module: nn.Sequential, start: int) -> RunPattern | None:
        """The longest pattern that covers the modules from `start` on; if none does, the report says why."""
        refused: tuple[_Place, str] | None = None
        for pattern in RUN_PATTERNS.values():
            named = list(module._modules.items())[start : start + len(pattern.parts)]
            parts = tuple(part for _, part in named if part is not None)
            if len(parts) != len(pattern.parts) or not all(map(isinstance, parts, pattern.parts)):
                continue
            paths = tuple(f"{path}.{name}" if path else name for name, _ in named)
            place = _Place(f"{paths[0]}-{named[-1][0]}", parts, paths)
            if not self._accepts(place):
                continue
            why = self._why_not(pattern, place, _forward_of_its_own(module) or why_not(pattern, parts))
            if not why:
                self._note_swap(pattern, place)
                return pattern
            refused = refused or (place, why)
        if refused is not None:
            self._leave(refused[0].path, refused[0].what, refused[1])
        return None


def _forward_of_its_own(module: nn.Sequential) -> str:
    own = type(module).forward is not nn.Sequential.forward or "forward" in module.__dict__
    return f"its {type(module).__name__} has a forward of its own" if own else ""


def _before(model: nn.Module) -> dict[int, list[nn.Module | None]]:
    """By the id of each module: the module in front of it in each plain Sequential, None for every other place."""
    found: dict[int, list[nn.Module | None]] = {}
    for parent in model.modules():
        plain = isinstance(parent, nn.Sequential) and not _forward_of_its_own(parent)
        previous: nn.Module | None = None
        for child in parent._modules.values():
            if child is not None:
                found.setdefault(id(child), []).append(previous if plain else None)
                previous = child
    return found
