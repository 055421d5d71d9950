"""Pretext tasks: what an encoder can learn from images and clips without labels."""

from genmod.pretext import ab_bins, clips, lab
from genmod.pretext.catalogue import tasks
from genmod.pretext.colorization import Colorization
from genmod.pretext.conv_lstm import ConvLSTM
from genmod.pretext.future import FutureFrames, NextStep, SequenceEncoder
from genmod.pretext.missing_patch import MissingPatch
from genmod.pretext.model import PretextConfig, PretextModel
from genmod.pretext.predict_self import PredictSelf
from genmod.pretext.rotation import Rotation
from genmod.pretext.task import Classification, Task
from genmod.pretext.temporal_order import TemporalOrder

__all__ = [
    "Classification",
    "Colorization",
    "ConvLSTM",
    "FutureFrames",
    "MissingPatch",
    "NextStep",
    "PredictSelf",
    "PretextConfig",
    "PretextModel",
    "Rotation",
    "SequenceEncoder",
    "Task",
    "TemporalOrder",
    "ab_bins",
    "clips",
    "lab",
    "tasks",
]
