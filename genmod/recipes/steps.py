"""A training step of any system, on Hugging Face Accelerate: devices, processes, precision, accumulation.

The curve of a run follows from the seed alone. Step k sees the same images and the same random numbers whether the run
was resumed or not, and whether a batch is taken at once, in parts (`accumulate`), or shared among processes: all draw
the random numbers of the whole batch, each uses its own rows, and gradients are averaged.
"""

from __future__ import annotations

import copy
import math
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from genmod.models.base import Losses
from genmod.recipes import RecipeError, need
from genmod.recipes.batches import DRAWS, PROCESS, Batches, seed_of

Precision = Literal["no", "bf16"]
BUCKET = 1 << 23  # numbers of gradient that are sent between processes at once


class Trainable(Protocol):
    """What the trainer asks of a model; `genmod.models.base.Model` has it, and says what each part means."""

    phases: tuple[str, ...]

    def phase_parameters(self, phase: str) -> list[nn.Parameter]: ...
    def draw(self, phase: str, n: int, generator: torch.Generator) -> dict[str, Tensor]: ...
    def backward(
        self, phase: str, images: Tensor, draws: dict[str, Tensor], *, step: int = 0, scale: float = 1.0
    ) -> Losses: ...
    def save(self, folder: str | Path) -> Any: ...


@dataclass(frozen=True)
class TrainConfig:
    """How to train; everything that the curve depends on, besides the model and the images.

    Args:
        steps: optimiser steps of each phase.
        batch: images in a step: all together, however many processes and parts share them.
        learning_rate: of all phases, or one for each phase by name.
        betas: Adam's.
        schedule: "constant", or "cosine": down to 0 along half a cosine.
        accumulate: parts that a batch is computed in, one after the other, for less memory. The gradient is the same,
            but for losses that look at the batch as a whole (batch norm, total correlation, DIP, MMD).
        precision: "no" (float32) or "bf16" (autocast). None takes what `accelerate launch` was told.
        ema: decay of an exponential moving average of the weights, or None.
        seed: of batches and random numbers; the model's initial weights are the caller's.
        save_every: steps between two checkpoints.
        log_every: steps between two entries in the logs.
    """

    steps: int
    batch: int = 64
    learning_rate: float | Mapping[str, float] = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["constant", "cosine"] = "constant"
    accumulate: int = 1
    precision: Precision | None = None
    ema: float | None = None
    seed: int = 0
    save_every: int = 200
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "save_every", "log_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise RecipeError(f"{name}: got {value!r}, expected a whole number >= 1")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise RecipeError(f"seed: got {self.seed!r}, expected a whole number >= 0")
        if self.schedule not in ("constant", "cosine"):
            raise RecipeError(f"schedule: got {self.schedule!r}, expected 'constant' or 'cosine'")
        if self.ema is not None and not 0 < self.ema < 1:
            raise RecipeError(f"ema: got {self.ema}, expected a number in (0, 1)")
        if self.batch % self.accumulate:
            raise RecipeError(f"accumulate: got {self.accumulate}, expected a divisor of the batch, {self.batch}")


class Trainer:
    """A model with its optimisers, ready to take steps.

    Args:
        model: moved to the device in place; with several processes it takes the weights of the first one.
        images: `[N, ...]`; they are moved to the device as one tensor.
        config: see `TrainConfig`.
        device: "cpu", or None for the one that Accelerate chooses.
        optimizer: called as `optimizer(parameters, lr=..., betas=...)`.
        log_to: folder for TensorBoard's files, or None: what `accelerator.log` is told goes there.

    Attributes:
        steps_done: how many steps were taken.
        averaged: the model with averaged weights, or None without `ema`.
        seconds, data_seconds: time in `step`, and the part of it spent on fetching images and random numbers.
    """

    def __init__(
        self,
        model: Any,
        images: Tensor,
        config: TrainConfig,
        *,
        device: str | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        log_to: Path | None = None,
    ) -> None:
        self.config, self.model = config, model
        self.accelerator = _accelerator(device, log_to)
        self.precision = _precision(config, self.accelerator)
        self.processes, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.accumulate = max(config.accumulate, self.accelerator.gradient_accumulation_steps)
        if config.batch % (self.processes * self.accumulate):
            pieces = f"{self.processes} processes x {self.accumulate} parts"
            raise RecipeError(f"batch: got {config.batch}, expected a multiple of {pieces}")
        if not len(images):
            raise RecipeError("images: got none, expected at least one")
        self.device = self.accelerator.device
        self.images = images.to(self.device)
        model.to(self.device).train()
        for tensor in model.state_dict().values() if self.processes > 1 else ():
            tensor.copy_(need("accelerate.utils").broadcast(tensor))
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False) if config.ema else None
        self.optimizers = {
            phase: optimizer(model.phase_parameters(phase), lr=self._rate(phase, 0), betas=config.betas)
            for phase in dict.fromkeys(model.phases)
        }
        if self.processes > 1 and hasattr(model, "distribute"):
            model.distribute(torch.distributed.group.WORLD)  # after the copy: a group of processes cannot be copied
        self._repeats = max(Counter(model.phases).values())
        self._batches = Batches(len(images), config.batch, config.seed)
        self.steps_done, self.seconds, self.data_seconds = 0, 0.0, 0.0
        torch.manual_seed(seed_of(PROCESS, config.seed, self.rank))

    def step(self) -> dict[str, Losses]:
        """One optimiser step of every phase, in order. Returns the losses of this process's share, by phase."""
        start = time.perf_counter()
        losses = {}
        for number, phase in enumerate(self.model.phases):
            losses[phase] = self._phase(number, phase)
        if self.averaged is not None:
            self._average_weights()
        self.steps_done += 1
        self.seconds += time.perf_counter() - start
        return losses

    def close(self) -> None:
        """Make the model one of this process alone again, where its losses were those of all processes."""
        if self.processes > 1 and hasattr(self.model, "distribute"):
            self.model.distribute(None)

    def batch(self, step: int, number: int, rows: slice = slice(None)) -> tuple[Tensor, dict[str, Tensor]]:
        """The images and random numbers of phase `number` in a step: all of the batch, or these rows of it.

        The phases of a step see the same images; one that comes several times sees new ones each time.
        """
        phase = self.model.phases[number]
        turn = self.model.phases[:number].count(phase)
        indices = self._batches[step * self._repeats + turn][rows]
        generator = torch.Generator().manual_seed(seed_of(DRAWS, self.config.seed, step, number))
        draws = self.model.draw(phase, self.config.batch, generator)
        mine = {name: tensor[rows].to(self.device, non_blocking=True) for name, tensor in draws.items()}
        return self.images[indices.to(self.device, non_blocking=True)], mine

    def _phase(self, number: int, phase: str) -> Losses:
        start = time.perf_counter()
        share = self.config.batch // self.processes
        images, draws = self.batch(self.steps_done, number, slice(self.rank * share, (self.rank + 1) * share))
        self.data_seconds += time.perf_counter() - start
        optimizer = self.optimizers[phase]
        optimizer.zero_grad(set_to_none=True)
        parts = []
        for rows in _parts(share, self.accumulate):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                mine = {name: tensor[rows] for name, tensor in draws.items()}
                parts.append(
                    self.model.backward(phase, images[rows], mine, step=self.steps_done, scale=1 / self.accumulate)
                )
        if self.processes > 1:
            self._average_gradients(phase)
        for group in optimizer.param_groups:
            group["lr"] = self._rate(phase, self.steps_done)
        optimizer.step()
        return parts[0] if len(parts) == 1 else _mean(parts)

    def _rate(self, phase: str, step: int) -> float:
        rate = self.config.learning_rate
        if isinstance(rate, Mapping):
            if phase not in rate:
                raise RecipeError(f"learning_rate: got one for {sorted(rate)}, expected one for {phase!r} too")
            rate = rate[phase]
        cosine = self.config.schedule == "cosine"
        return rate * 0.5 * (1 + math.cos(math.pi * step / self.config.steps)) if cosine else rate

    @torch.no_grad()
    def _average_gradients(self, phase: str) -> None:
        """The mean over processes, sent in few large pieces. A gradient that only other processes have counts, too."""
        parameters = self.model.phase_parameters(phase)
        for bucket in _buckets(parameters):
            gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in bucket]
            flat = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
            pieces = flat.split([parameter.numel() for parameter in bucket])
            for parameter, piece in zip(bucket, pieces, strict=True):
                parameter.grad = piece.view_as(parameter)

    @torch.no_grad()
    def _average_weights(self) -> None:
        assert self.averaged is not None and self.config.ema is not None
        # An average that starts at the random initial weights would remember them for long: it begins faster.
        decay = min(self.config.ema, (1 + self.steps_done) / (10 + self.steps_done))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)
        for mine, theirs in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            mine.copy_(theirs)

    def state(self) -> dict[str, Tensor]:
        """The tensors, besides the model's own, from which training goes on: optimisers' and the random state."""
        tensors = {"random.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        for phase, optimizer in self.optimizers.items():
            for index, values in optimizer.state_dict()["state"].items():
                for name, value in values.items():
                    tensors[f"optimizer.{phase}.{index}.{name}"] = torch.as_tensor(value)
        return tensors

    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Go on from what `state` returned after `step` steps. The model's weights are the caller's to load."""
        for phase, optimizer in self.optimizers.items():
            prefix = f"optimizer.{phase}."
            state: dict[int, dict[str, Tensor]] = {}
            for key, tensor in tensors.items():
                if key.startswith(prefix):
                    index, name = key.removeprefix(prefix).split(".", 1)
                    state.setdefault(int(index), {})[name] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if self.rank == 0:
            torch.set_rng_state(tensors["random.cpu"])
            if self.device.type == "cuda" and "random.cuda" in tensors:
                torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        self.steps_done = step


def _accelerator(device: str | None, log_to: Path | None) -> Any:
    accelerate = need("accelerate")
    if device not in (None, "cpu", "cuda"):
        raise RecipeError(f"device: got {device!r}, expected 'cpu' or 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device: got 'cuda', but PyTorch sees no CUDA GPU here; expected 'cpu'")
    if log_to:
        # TensorBoard's own sign that there is no TensorFlow: where there is, importing it would take half a minute.
        sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
    _forget_other_device(accelerate, device)
    trackers = {"log_with": "tensorboard", "project_dir": log_to} if log_to else {}
    return accelerate.Accelerator(cpu=device == "cpu", **trackers)


def _forget_other_device(accelerate: Any, device: str | None) -> None:
    """Accelerate keeps a process's first device for good: asked for a GPU after a CPU, it would stay on the CPU; for a
    CPU after a GPU, it would raise."""
    state = accelerate.state.PartialState
    if device is None or not state._shared_state or state().device.type == device:
        return
    if state().num_processes > 1:
        raise RecipeError(f"device: got {device!r}, but these processes share work on {state().device.type!r} already")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def _precision(config: TrainConfig, accelerator: Any) -> Precision:
    precision = config.precision or accelerator.mixed_precision
    if precision not in ("no", "bf16"):
        raise RecipeError(
            f"precision: got {precision!r}, expected 'no' or 'bf16'; float16 would need a loss scale, which a critic's "
            "penalty does not survive, and bf16 costs the same"
        )
    return precision


def _parts(share: int, accumulate: int) -> Iterator[slice]:
    size = share // accumulate
    yield from (slice(start, start + size) for start in range(0, share, size))


def _mean(parts: list[Losses]) -> Losses:
    names = parts[0].parts
    return Losses(
        torch.stack([part.loss for part in parts]).mean(),
        {name: torch.stack([part.parts[name] for part in parts]).mean() for name in names},
    )


def _buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbouring parameters of one type, up to `BUCKET` numbers or one parameter."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        full = sum(each.numel() for each in bucket) + parameter.numel() > BUCKET
        if bucket and (full or bucket[0].dtype != parameter.dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
