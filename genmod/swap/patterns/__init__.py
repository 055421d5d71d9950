"""The table of patterns."""

from genmod.swap.pattern import ModulePattern, RunPattern
from genmod.swap.patterns import norm_act

_RUNS: tuple[RunPattern, ...] = norm_act.RUNS
#: Of patterns that start with the same modules the longest comes first.
RUN_PATTERNS: dict[str, RunPattern] = {p.name: p for p in sorted(_RUNS, key=lambda p: -len(p.parts))}
MODULE_PATTERNS: tuple[ModulePattern, ...] = ()
TABLE = (*RUN_PATTERNS.values(), *MODULE_PATTERNS)
