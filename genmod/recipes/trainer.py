"""One training loop for every system: checkpoints, logs, a progress bar; and what to do when something goes wrong.

A run that is killed at any moment goes on with `resume` from its newest checkpoint, along the same curve. The first
Ctrl-C saves and ends. A loss that is not a number stops the run and keeps the batch that it came from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genmod.models.base import Losses
from genmod.recipes import RecipeError, need
from genmod.recipes.checkpoint import Checkpoints, SaveError, load_weights, read_training, write_training
from genmod.recipes.interrupts import Interrupts, leave
from genmod.recipes.steps import Trainable, TrainConfig, Trainer

__all__ = ["Diverged", "Result", "TrainConfig", "Trainable", "Trainer", "train"]

Report = Callable[[str], None]


class Diverged(RecipeError):
    """The loss, or a weight, is not a finite number any more."""

    exit_code = 3


@dataclass(frozen=True)
class Result:
    """A trained model and how it went.

    Attributes:
        model: in evaluation mode; with averaged weights where the configuration has `ema`.
        curve: the loss of every step, by phase; of all processes together.
        steps: the last step, where the curve ends.
        step_seconds: mean duration of the steps that this process took.
        data_share: the part of that time spent on fetching images and random numbers.
    """

    model: Any
    curve: dict[str, list[float]]
    steps: int
    step_seconds: float
    data_share: float


def train(
    model: Any,
    images: Tensor,
    config: TrainConfig,
    *,
    out: Path | None = None,
    resume: bool = False,
    device: str | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    finish: Callable[[Any], None] | None = None,
    log: bool = True,
    console: Any = None,
    title: str = "training",
    report: Report = print,
) -> Result:
    """Train a model until `config.steps` steps are done.

    Args:
        model: anything with the interface of `Trainable`, such as every model of `genmod.models`.
        images: `[N, ...]`, what the model takes.
        config: see `TrainConfig`.
        out: folder for checkpoints and logs; without it nothing is written.
        resume: go on from the newest checkpoint in `out`, or start where there is none yet.
        device: "cpu", "cuda", or None for Accelerate's choice, which is that of the process's first training.
        optimizer: called as `optimizer(parameters, lr=..., betas=...)`.
        finish: called after the last step with the model that will be used, before it is saved.
        log: write TensorBoard files to `out`.
        console: a rich console for a progress bar, or None for no bar.
        title: in front of the bar.
        report: gets one line for each thing that the user should know.

    Raises:
        RecipeError: settings that do not fit, or `out` holds a run already.
        CheckpointError: the checkpoint in `out` is damaged, or of another model or configuration.
        Diverged: the loss is not finite; see the message for step and batch.
        SaveError: the last checkpoint could not be written. An earlier one that cannot be is only reported.
        KeyboardInterrupt: after the first Ctrl-C, and after saving.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        trainer = Trainer(
            model, images, config, device=device, optimizer=optimizer, log_to=out / "logs" if out and log else None
        )
        run = _Run(trainer, out, report, finish)
        run.begin(resume)
        try:
            with Interrupts() as interrupts, _bar(run, console, title) as show, _logs(run):
                run.to_the_end(interrupts, show)
        finally:
            trainer.close()
    taken = max(trainer.steps_done - run.first, 1)
    share = trainer.data_seconds / max(trainer.seconds, 1e-9)
    return Result(run.model.eval(), run.curve, trainer.steps_done, trainer.seconds / taken, share)


class _Run:
    """A trainer with its folder and its curve."""

    def __init__(
        self, trainer: Trainer, out: Path | None, report: Report, finish: Callable[[Any], None] | None
    ) -> None:
        self.trainer, self.out, self.config, self.finish = trainer, out, trainer.config, finish
        self.model = trainer.model if trainer.averaged is None else trainer.averaged
        self.report = report if trainer.accelerator.is_main_process else lambda _: None
        self.checkpoints = Checkpoints(out / "checkpoints") if out else None
        self.curve: dict[str, list[float]] = {phase: [] for phase in trainer.optimizers}
        self.first = 0
        self.logging = True

    def begin(self, resume: bool) -> None:
        latest = self.checkpoints.latest() if self.checkpoints else None
        if latest is None:
            if resume:
                self.report(f"{self.out} holds no checkpoint yet: starting at step 0")
            return
        if not resume:
            raise RecipeError(f"{self.out} holds the checkpoint of a run: go on with --resume, or name another folder")
        tensors, step = read_training(latest, self._facts())
        load_weights(self.trainer.model, latest)
        if self.trainer.averaged is not None:
            load_weights(self.trainer.averaged, latest / "ema")
        self.trainer.load_state(tensors, step)
        self.curve = {phase: tensors[f"curve.{phase}"].tolist() for phase in self.curve}
        self.first = step
        self.report(f"going on from step {step}")

    def to_the_end(self, interrupts: Interrupts, show: Callable[[], None]) -> None:
        trainer, config = self.trainer, self.config
        # Reading a loss makes the host wait for a GPU: there, several are read together.
        together = 1 if trainer.device.type == "cpu" else config.log_every
        pending: list[dict[str, Losses]] = []
        while trainer.steps_done < config.steps:
            pending.append(trainer.step())
            save = trainer.steps_done % config.save_every == 0 or trainer.steps_done == config.steps
            if not save and len(pending) < together:
                continue
            stop = self._settle(pending, interrupts)
            show()
            if trainer.steps_done // config.log_every > (trainer.steps_done - len(pending)) // config.log_every:
                self._log(pending[-1])
            pending.clear()
            if save or stop:
                self._save(last=stop or trainer.steps_done == config.steps)
            if stop:
                kept = "go on with --resume" if self.checkpoints else "nothing was saved, as there is no folder"
                self.report(f"stopped at step {trainer.steps_done}; {kept}")
                leave(interrupts.received)

    def _settle(self, pending: list[dict[str, Losses]], interrupts: Interrupts) -> bool:
        """Add these steps to the curve. True if any process was asked to stop: all agree, or they would wait forever.

        Raises:
            Diverged: one of the losses is not finite.
        """
        trainer = self.trainer
        asked = torch.tensor(float(interrupts.received), device=trainer.device)
        values = torch.stack([losses[phase].loss.float() for losses in pending for phase in self.curve] + [asked])
        if trainer.processes > 1:
            values = trainer.accelerator.reduce(values, "mean")
        *numbers, stop = values.tolist()
        first = trainer.steps_done - len(pending)
        for index, value in enumerate(numbers):
            offset, phase = divmod(index, len(self.curve))
            name = list(self.curve)[phase]
            if not math.isfinite(value):
                raise self._diverged(first + offset, f"the {name} loss is {value}")
            self.curve[name].append(value)
        return stop > 0

    def _diverged(self, step: int, what: str) -> Diverged:
        """The error, after saving all batches of the step: images and random numbers, for whoever looks into it."""
        message = f"{what} at step {step + 1}"
        if self.out is None or self.checkpoints is None:
            return Diverged(message)
        folder = self.out / "diverged"
        name = f"step-{step + 1:08d}"
        if self.trainer.accelerator.is_main_process:
            tensors, pictures = {}, need("genmod.recipes.pictures")
            for number, phase in enumerate(self.trainer.model.phases):
                images, draws = self.trainer.batch(step, number)
                for key, tensor in {"images": images, **draws}.items():
                    tensors[f"{number}.{phase}.{key}"] = tensor.cpu().contiguous()
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{name}.safetensors").write_bytes(need("safetensors.torch").save(tensors))
                pictures.save_images(folder / f"{name}.png", tensors[f"0.{self.trainer.model.phases[0]}.images"], name)
            except OSError as error:
                return Diverged(f"{message}; its batch could not be saved: {error}")
        kept = self.checkpoints.latest()
        left = f"the last checkpoint is {kept}" if kept else "there was no checkpoint yet"
        return Diverged(f"{message}; its batch is {folder / name}.safetensors and .png; {left}")

    def _save(self, last: bool) -> None:
        trainer = self.trainer
        if not all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters()):
            raise self._diverged(trainer.steps_done - 1, "a weight is not finite after the update")
        if self.finish and trainer.steps_done == self.config.steps:
            self.finish(self.model)
        if self.checkpoints is None:
            return
        failed = None
        if trainer.accelerator.is_main_process:
            try:
                self.checkpoints.save(trainer.steps_done, self._write)
            except SaveError as error:
                failed = error
                if not last:  # space may be made before the next one; what is in memory is not thrown away
                    self.report(f"warning: {error}; training goes on")
        trainer.accelerator.wait_for_everyone()
        if failed and last:
            raise failed

    def _write(self, folder: Path) -> None:
        self.trainer.model.save(folder)
        if self.trainer.averaged is not None:
            self.trainer.averaged.save(folder / "ema")
        curves = {f"curve.{phase}": torch.tensor(values).double() for phase, values in self.curve.items()}
        write_training(folder, {**self.trainer.state(), **curves}, {"step": self.trainer.steps_done, **self._facts()})

    def _facts(self) -> dict[str, Any]:
        """What a run that resumes must have in common with the one that saved: all that decides the curve."""
        free = {"accumulate", "save_every", "log_every"}
        if self.config.schedule == "constant":
            free.add("steps")  # with another schedule, every rate depends on where it ends
        facts = {name: value for name, value in dataclasses.asdict(self.config).items() if name not in free}
        images = self.trainer.images
        checksum = zlib.crc32(images.cpu().contiguous().numpy().tobytes())
        facts["precision"] = self.trainer.precision
        return {**facts, "images": f"{tuple(images.shape)}, checksum {checksum:08x}"}

    def _log(self, losses: dict[str, Losses]) -> None:
        if not self.logging:
            return
        trainer = self.trainer
        values = {f"loss/{phase}": self.curve[phase][-1] for phase in losses}
        for phase, each in losses.items():
            values |= {f"{phase}/{name}": float(part) for name, part in each.parts.items()}
        values["time/step"] = trainer.seconds / max(trainer.steps_done - self.first, 1)
        values["time/data share"] = trainer.data_seconds / trainer.seconds
        with self.without_logs():
            trainer.accelerator.log(values, step=trainer.steps_done)

    @contextlib.contextmanager
    def without_logs(self) -> Iterator[None]:
        """Around what writes logs: a full disk costs them, and the training goes on."""
        try:
            yield
        except OSError as error:
            if self.logging:
                self.report(f"warning: cannot write logs in {self.out}: {error}; training goes on without")
            self.logging = False


@contextlib.contextmanager
def _bar(run: _Run, console: Any, title: str) -> Iterator[Callable[[], None]]:
    """A progress bar in the main process; gives the function that brings it up to date."""
    trainer = run.trainer
    if console is None or not trainer.accelerator.is_main_process:
        yield lambda: None
        return
    module = need("rich.progress")
    columns = [getattr(module, f"{kind}Column")() for kind in ("Bar", "MofNComplete", "TimeRemaining")]
    with module.Progress("{task.description}", *columns, "{task.fields[losses]}", console=console) as progress:
        task = progress.add_task(title, total=run.config.steps, completed=trainer.steps_done, losses="")

        def show() -> None:
            losses = "  ".join(f"{phase} {values[-1]:,.4g}" for phase, values in run.curve.items())
            progress.update(task, completed=trainer.steps_done, losses=losses)

        yield show


@contextlib.contextmanager
def _logs(run: _Run) -> Iterator[None]:
    with run.without_logs():
        run.trainer.accelerator.init_trackers("")
    usual = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        # TensorBoard's writer is a thread, which tells what `without_logs` is told too.
        known = type(args.thread).__module__.startswith("tensorboard") and issubclass(args.exc_type, OSError)
        if not known:
            usual(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        for tracker in run.trainer.accelerator.trackers:
            with run.without_logs():
                tracker.finish()
        threading.excepthook = usual
