"""Patterns in forwards that people write by hand: `F.silu(self.norm(x))`, `F.interpolate` and a convolution, and so on.

A forward is traced by torch.fx, with every other module a leaf, and written out again with what the table of patterns
covers put together. fx sees one path through the code and keeps what it read on the way as constants; so a trace counts
only for code whose one path is known (`purity`), and each call asks first whether what was read still holds (`guards`).
Else the module's own forward runs.
"""

from genmod.swap.functional.forward import candidate, plan_for, swap_forward
from genmod.swap.functional.purity import Impure
from genmod.swap.functional.sites import Site

__all__ = ["Impure", "Site", "candidate", "plan_for", "swap_forward"]
