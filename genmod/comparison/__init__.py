"""`genmod.compare`: is the accelerated model the same model, and what did it gain?"""

from genmod.comparison.observe import Inputs
from genmod.comparison.result import Comparison, Difference, Speed
from genmod.comparison.run import compare

__all__ = ["Comparison", "Difference", "Inputs", "Speed", "compare"]
