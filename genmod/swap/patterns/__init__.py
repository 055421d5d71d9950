"""The table of patterns."""

from genmod.swap.pattern import ModulePattern, Pattern, RunPattern
from genmod.swap.patterns import conv_norm, critic, diffusers, losses, norm_act, upsample_conv

_RUNS: tuple[RunPattern, ...] = (*upsample_conv.RUNS, *conv_norm.RUNS, *norm_act.RUNS)
#: Of patterns that start with the same modules the longest comes first.
RUN_PATTERNS: dict[str, RunPattern] = {p.name: p for p in sorted(_RUNS, key=lambda p: -len(p.parts))}
MODULE_PATTERNS: tuple[ModulePattern, ...] = (*critic.MODULES, *losses.MODULES, *diffusers.MODULES)
#: Not what is computed, but how images lie in memory meanwhile; see `genmod.swap.sequential`.
CHANNELS_LAST = Pattern(
    name="channels_last",
    became="in channels_last inside; what comes out is in the format of what went in",
    exactness="reassociated",
    bound="error at most twice stock's own",
)
TABLE: tuple[Pattern, ...] = (*RUN_PATTERNS.values(), *MODULE_PATTERNS, CHANNELS_LAST)
