"""`genmod.compare`: is the accelerated model the same model, and what did it gain?"""

from genmod.compare.observe import Inputs
from genmod.compare.result import Comparison, Difference, Speed
from genmod.compare.run import compare

__all__ = ["Comparison", "Difference", "Inputs", "Speed", "compare"]
