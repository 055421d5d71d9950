"""The record of every op (see :class:`genmod.registry.OpSpec`): importing this package registers them all.

One module per family. Tests, benchmarks and docs read them; nothing that runs in a model does.
"""

from genmod.registry import specs
from genmod.specs import (
    adversarial,
    aggregate,
    conv3x3,
    conv4x4,
    critic,
    gaussian,
    logistic_mixture,
    norm_act,
    reconstruction,
    upsample_conv,
)

__all__ = [
    "adversarial",
    "aggregate",
    "conv3x3",
    "conv4x4",
    "critic",
    "gaussian",
    "logistic_mixture",
    "norm_act",
    "reconstruction",
    "specs",
    "upsample_conv",
]
