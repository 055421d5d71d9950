"""The tasks by their names."""

from __future__ import annotations

from genmod.pretext.colorization import Colorization
from genmod.pretext.future import FutureFrames, NextStep
from genmod.pretext.missing_patch import MissingPatch
from genmod.pretext.predict_self import PredictSelf
from genmod.pretext.rotation import Rotation
from genmod.pretext.task import Task
from genmod.pretext.temporal_order import TemporalOrder

_TASKS: tuple[type[Task], ...] = (
    PredictSelf,
    TemporalOrder,
    MissingPatch,
    Rotation,
    Colorization,
    FutureFrames,
    NextStep,
)


def tasks() -> dict[str, type[Task]]:
    """Every task's class by its name; a class is called with the task's options, all of which have defaults."""
    return {task.name: task for task in _TASKS}
