"""An encoder with the head of a pretext task, which trains as every model here does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from genmod.models import configs
from genmod.models.base import CheckpointError, Draws, Losses, Model
from genmod.models.networks import ConvEncoder
from genmod.nn import CriticLoss, GeneratorLoss
from genmod.pretext.catalogue import tasks
from genmod.pretext.future import NextStep, SequenceEncoder
from genmod.pretext.missing_patch import MissingPatch
from genmod.pretext.task import Shape, Task


@dataclass(frozen=True)
class PretextConfig:
    """What :meth:`PretextModel.from_config` makes.

    Attributes:
        task: a name in :func:`genmod.pretext.tasks`.
        options: the task's own, such as `{"every": True}` for "rotation".
        image_size: height and width of images, a multiple of 2**stages.
        channels: of images as they are given, 1 or 3; the encoder has as many as the task shows it.
        frames: of clips, for tasks that take them.
        width: feature maps of the encoder's first stage; for "next_step", features of a step are 4 times as many.
        stages: how often the encoder halves the image.
    """

    task: str = "rotation"
    options: dict[str, Any] = field(default_factory=dict)
    image_size: int = 32
    channels: int = 3
    frames: int = 8
    width: int = 32
    stages: int = 3

    def __post_init__(self) -> None:
        configs.choice("task", self.task, tuple(tasks()))
        if not isinstance(self.options, dict):
            raise TypeError(f"options: got {type(self.options).__name__}, expected a dict of the task's options")
        configs.whole(self, "image_size", "channels", "frames", "width", "stages")
        if self.image_size % 2**self.stages:
            raise ValueError(
                f"image_size: got {self.image_size}, expected a multiple of 2**stages = {2**self.stages}, because "
                "every stage halves the image"
            )

    def make_task(self) -> Task:
        """The task with its options."""
        return tasks()[self.task](**self.options)


class PretextModel(Model):
    """An encoder that learns by a pretext task.

    What training leaves behind is `encoder`: see :func:`genmod.models.transfer`. Parts of the loss: "task"; for a task
    with a critic "reconstruction" and "adversarial", and "critic" in its phase.

    Args:
        encoder: a module as :class:`genmod.models.networks.ConvEncoder` is one, with `features`, `feature_shape`,
            `num_features`, and as many channels as `task.view_channels` says; it becomes a part of this model.
        task: a :class:`Task`.
        shape: of a sample as the task's transform takes it: (C, H, W), or (T, C, H, W) for clips.

    Attributes:
        phases: ("model",), or ("critic", "generator") if the task has a critic.
        latent_dim: the encoder's `num_features`.
        sample_shape: `shape`.
    """

    config_class = PretextConfig
    config: PretextConfig | None

    def __init__(self, encoder: nn.Module, task: Task, shape: Shape) -> None:
        super().__init__()
        if not isinstance(task, Task):
            raise TypeError(f"task: got {type(task).__name__}, expected a genmod.pretext.Task")
        self.config = None
        self.task, self.sample_shape = task, tuple(shape)
        self.image_shape = self.sample_shape[-3:]  # type: ignore[assignment]
        self.encoder = encoder
        self.head = task.head(encoder, self.sample_shape)
        self.critic = task.critic(self.sample_shape)
        self.phases = ("model",) if self.critic is None else ("critic", "generator")
        self.latent_dim = int(encoder.num_features)  # type: ignore[arg-type]

    @classmethod
    def from_config(cls, config: PretextConfig) -> PretextModel:
        """A task and an encoder for it: a `ConvEncoder`, or a `SequenceEncoder` for "next_step"."""
        task = config.make_task()
        shape: Shape = (config.channels, config.image_size, config.image_size)
        encoder: nn.Module
        if isinstance(task, NextStep):
            encoder = SequenceEncoder(config.channels * config.image_size, 4 * config.width)
        else:
            encoder = ConvEncoder(config.image_size, task.view_channels(config.channels), config.width, config.stages)
        model = cls(encoder, task, (config.frames, *shape) if task.clips else shape)
        # The options as they are now, all of them, and as JSON would give them back.
        model.config = dataclasses.replace(config, options=dataclasses.asdict(task))  # type: ignore[call-overload]
        return model

    # ------------------------------------------------------------------------------------------------------- training

    def phase_parameters(self, phase: str) -> list[nn.Parameter]:
        """The critic's parameters, or those of encoder and head."""
        self._check_phase(phase)
        if phase == "critic":
            assert self.critic is not None
            return list(self.critic.parameters())
        return [*self.encoder.parameters(), *self.head.parameters()]

    def draw(self, phase: str, n: int, generator: torch.Generator | None = None) -> Draws:
        """What the task draws."""
        self._check_phase(phase)
        return self.task.draw(n, self.sample_shape, generator)

    def predict(self, input: Tensor) -> Tensor:
        """The output for an input of the task."""
        return self.task.predict(self.encoder, self.head, input)

    def loss(
        self, images: Tensor, *, step: int = 0, generator: torch.Generator | None = None, draws: Draws | None = None
    ) -> Losses:
        """The task's loss; with a critic, what encoder and head minimise. `step` does not matter.

        Raises:
            TypeError, ValueError: images, or clips, of another shape than the model's.
        """
        self._check_samples(images)
        draws = self._draws(self.phases[-1], images, draws, generator)
        input, target = self.task.transform(images, draws=draws)
        output = self.predict(input)
        loss = self.task.loss(output, target)
        if self.critic is None:
            return Losses.of(task=loss)
        assert isinstance(self.task, MissingPatch)
        weight = self.task.adversarial
        fooling = GeneratorLoss()(fake=self.critic(self.task.filled(output, target)))
        return Losses.of(reconstruction=(1 - weight) * loss, adversarial=weight * fooling)

    def critic_loss(
        self, images: Tensor, *, generator: torch.Generator | None = None, draws: Draws | None = None
    ) -> Losses:
        """What the critic minimises: whole images are real, filled ones fake."""
        if self.critic is None:
            raise ValueError(f"the task {self.task.name!r} as it is has no critic")
        assert isinstance(self.task, MissingPatch)
        self._check_samples(images)
        draws = self._draws("critic", images, draws, generator)
        with torch.no_grad():
            input, target = self.task.transform(images, draws=draws)
            fake = self.task.filled(self.predict(input), target)
        return Losses.of(critic=CriticLoss()(real=self.critic(images), fake=self.critic(fake)))

    def backward(self, phase: str, images: Tensor, draws: Draws, *, step: int = 0, scale: float = 1.0) -> Losses:
        """See :class:`genmod.models.base.Model`."""
        parameters = self.phase_parameters(phase)
        if phase == "critic":
            losses = self.critic_loss(images, draws=draws)
        else:
            losses = self.loss(images, step=step, draws=draws)
        # Encoder and head learn through the critic, which gets no gradient by that.
        return losses.backward(scale, parameters)

    @torch.no_grad()
    def evaluate(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[float, float]:
        """The task's score on these samples, and the score of chance on them; in the present mode."""
        self._check_samples(x)
        input, target = self.task.transform(x, generator)
        return float(self.task.score(self.predict(input), target)), self.task.chance(input, target)

    # --------------------------------------------------------------------------------------------------------- images

    def encode(self, images: Tensor) -> Tensor:
        """The encoder's features of images `[B, C, H, W]`, as the task shows them to it: `[B, num_features]`.

        For "next_step" `[B, T, num_features]`.
        """
        return self.encoder(self.task.view(images))

    def latents(self, images: Tensor) -> Tensor:
        """The same as `encode`; for "next_step", after the last row."""
        features = self.encode(images)
        return features[:, -1] if features.dim() == 3 else features

    # ---------------------------------------------------------------------------------------------------------- disks

    def save(self, folder: Any) -> None:
        """See :class:`genmod.models.base.Model`; only of a model that `from_config` made."""
        if self.config is None:
            raise CheckpointError(
                "cannot save a PretextModel around an encoder of one's own: save its encoder.state_dict(), or make the "
                "model by PretextModel.from_config"
            )
        super().save(folder)

    @classmethod
    def _from_config(cls, config: dict[str, Any], folder: object) -> PretextModel:
        try:
            return cls.from_config(PretextConfig(**config))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder} has a config that {cls.__name__} does not take: {error}") from error

    def _draws(self, phase: str, images: Tensor, draws: Draws | None, generator: torch.Generator | None) -> Draws:
        """As in `Model`, but in the dtype that they were drawn in: here they also are classes and places."""
        draws = self.draw(phase, len(images), generator) if draws is None else draws
        super()._draws(phase, images, draws, None)  # for its checks
        return {name: tensor.to(images.device) for name, tensor in draws.items()}

    def _check_samples(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.sample_shape:
            wanted = ", ".join(map(str, self.sample_shape))
            raise ValueError(f"images: got shape {tuple(x.shape)}, expected [B, {wanted}] for {self.task.name!r}")
