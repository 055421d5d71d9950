"""The table of patterns."""

from genmod.swap.pattern import ModulePattern, Pattern, RunPattern
from genmod.swap.patterns import conv3x3, conv4x4, conv_norm, critic, diffusers, losses, norm_act, upsample_conv

_RUNS: tuple[RunPattern, ...] = (*upsample_conv.RUNS, *conv_norm.RUNS, *norm_act.RUNS)
#: Of patterns that start with the same modules the longest comes first.
RUN_PATTERNS: dict[str, RunPattern] = {p.name: p for p in sorted(_RUNS, key=lambda p: -len(p.parts))}
_CONVOLUTIONS = (*conv3x3.MODULES, *conv4x4.MODULES)
MODULE_PATTERNS: tuple[ModulePattern, ...] = (*critic.MODULES, *losses.MODULES, *diffusers.MODULES, *_CONVOLUTIONS)
TABLE: tuple[Pattern, ...] = (*RUN_PATTERNS.values(), *MODULE_PATTERNS)
