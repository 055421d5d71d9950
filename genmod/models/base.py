"""What every model can do, whatever its family: one interface for training, for tools on latents, and for disks."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genmod.models import checkpoint
from genmod.models.checkpoint import CheckpointError
from genmod.nn import DIP, MMD, TotalCorrelation

__all__ = ["CheckpointError", "Draws", "Losses", "Model", "load"]

Draws = dict[str, Tensor]
M = TypeVar("M", bound="Model")

_CLASSES: dict[str, type[Model]] = {}


class Losses(NamedTuple):
    """A loss and the weighted terms that add up to it, all of no dimension."""

    loss: Tensor
    parts: dict[str, Tensor]

    @classmethod
    def of(cls, **parts: Tensor) -> Losses:
        """The sum of the parts given, which are kept without their graphs."""
        return cls(functools.reduce(torch.add, parts.values()), {name: part.detach() for name, part in parts.items()})

    def backward(self, scale: float, inputs: list[nn.Parameter] | None = None) -> Losses:
        """Add `scale` times the gradient to `.grad`, of `inputs` alone if given; returns the loss without its graph."""
        (self.loss if scale == 1 else self.loss * scale).backward(inputs=inputs)
        return Losses(self.loss.detach(), self.parts)


class Model(nn.Module):
    """A generative model of images `[B, C, H, W]` with values in [0, 1].

    A training step runs `phases` in their order; each minimises a loss of its own by parameters of its own:

        for phase in model.phases:
            optimizers[phase].zero_grad()
            losses = model.backward(phase, images, model.draw(phase, len(images), generator), step=step)
            optimizers[phase].step()

    All randomness of a phase is in what `draw` returns, one row per sample, so that a batch cut into parts, over steps
    that accumulate gradients or over processes, sees the same numbers as the whole.

    Attributes:
        config: the frozen dataclass that the model was made from.
        phases: ("model",), or ("critic", "generator") for a GAN.
        latent_dim: D, the number of latent variables.
        image_shape: (C, H, W).
    """

    config_class: ClassVar[type]
    config: Any
    phases: tuple[str, ...] = ("model",)
    latent_dim: int
    image_shape: tuple[int, int, int]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _CLASSES[cls.__name__] = cls

    # ------------------------------------------------------------------------------------------------------- training

    def phase_parameters(self, phase: str) -> list[nn.Parameter]:
        """The parameters that a phase trains."""
        self._check_phase(phase)
        return list(self.parameters())

    def draw(self, phase: str, n: int, generator: torch.Generator | None = None) -> Draws:
        """Every random number that a phase needs for n samples, each tensor `[n, ...]` on the generator's device."""
        self._check_phase(phase)
        return {}

    def loss(
        self, images: Tensor, *, step: int = 0, generator: torch.Generator | None = None, draws: Draws | None = None
    ) -> Losses:
        """The loss of a batch, differentiable.

        Args:
            images: `[B, C, H, W]` in [0, 1].
            step: steps taken so far, for what is annealed.
            generator: where randomness comes from if `draws` are not given.
            draws: what `draw` returned for so many samples, on any device.
        """
        raise NotImplementedError

    def forward(self, images: Tensor, **options: Any) -> Losses:
        """The same as `loss`."""
        return self.loss(images, **options)

    def distribute(self, group: dist.ProcessGroup | None) -> None:
        """Share the batch with the processes of a group, in equal parts; None, the default, ends it.

        Terms that compare the samples of a batch with each other (total correlation, MMD, DIP) are then those of the
        whole batch, with gradients to be averaged over the processes. All other terms are means over samples, and need
        nothing.
        """
        for module in self.modules():
            if isinstance(module, (TotalCorrelation, MMD, DIP)):
                module.process_group = group

    def backward(self, phase: str, images: Tensor, draws: Draws, *, step: int = 0, scale: float = 1.0) -> Losses:
        """Add `scale` times the gradient of a phase's loss to `.grad` of its parameters, and of no others.

        Returns the loss, not scaled and without a graph.
        """
        self._check_phase(phase)
        return self.loss(images, step=step, draws=draws).backward(scale)

    # --------------------------------------------------------------------------------------------------------- images

    def encode(self, images: Tensor) -> Any:
        """What the encoder makes of images."""
        raise NotImplementedError(f"{type(self).__name__} has no encoder")

    def latents(self, images: Tensor) -> Tensor:
        """One latent vector per image, `[B, D]`, without randomness."""
        raise NotImplementedError(f"{type(self).__name__} has no encoder")

    def decode(self, z: Tensor) -> Tensor:
        """Latents `[B, D]` -> images `[B, C, H, W]` in [0, 1]; differentiable."""
        raise NotImplementedError

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """The images as their latents decode."""
        return self.decode(self.latents(images))

    def prior(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents `[n, D]` from the distribution that `sample` decodes: a standard normal."""
        weight = next(self.parameters())
        # The generator decides where they are drawn, so that one CPU seed gives the same images on every device.
        device = weight.device if generator is None else generator.device
        return torch.randn(n, self.latent_dim, generator=generator, device=device).to(weight)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n new images `[n, C, H, W]` in [0, 1]."""
        return self.decode(self.prior(n, generator))

    # ---------------------------------------------------------------------------------------------------------- disks

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `model.safetensors` and `config.json` into a folder, which is made where needed.

        Raises:
            CheckpointError: they cannot be written; what was saved in the folder before is then unchanged.
        """
        header = {"model": type(self).__name__, "genmod": _version(), "config": dataclasses.asdict(self.config)}
        checkpoint.write(folder, header, self.state_dict())

    @classmethod
    def load(cls: type[M], folder: str | os.PathLike[str]) -> M:
        """The model that `save` wrote, on the CPU, in float32 and in evaluation mode.

        Raises:
            CheckpointError: no checkpoint; one of another model or format; damaged files; a pickle, which is not read.
        """
        header = checkpoint.read_header(folder)
        kind = _CLASSES.get(header["model"])
        if kind is None or not issubclass(kind, cls):
            wanted = "one of " + ", ".join(sorted(_CLASSES)) if cls is Model else cls.__name__
            raise CheckpointError(f"{folder} holds a model of class {header['model']}, expected {wanted}")
        # First without memory: a config of an absurd size, or one of other weights, is found out before it costs.
        with torch.device("meta"):
            shell = kind._from_config(header["config"], folder)
        tensors = checkpoint.read_tensors(folder, shell.state_dict())
        model = kind._from_config(header["config"], folder)
        model.load_state_dict(tensors)
        return model.eval()

    @classmethod
    def _from_config(cls: type[M], config: dict[str, Any], folder: object) -> M:
        try:
            return cls(cls.config_class(**config))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder} has a config that {cls.__name__} does not take: {error}") from error

    # ---------------------------------------------------------------------------------------------------------- checks

    def _check_phase(self, phase: str) -> None:
        if phase not in self.phases:
            raise ValueError(
                f"phase: got {phase!r}, expected one of {', '.join(map(repr, dict.fromkeys(self.phases)))}"
            )

    def _check_images(self, images: Tensor) -> None:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = f"dtype {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images: got {got}, expected a floating-point tensor with values in [0, 1]")
        if images.dim() != 4 or tuple(images.shape[1:]) != self.image_shape:
            wanted = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images: got shape {tuple(images.shape)}, expected [B, {wanted}]")

    def _check_latents(self, z: Tensor) -> None:
        if z.dim() != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"z: got shape {tuple(z.shape)}, expected [B, {self.latent_dim}]")

    def _draws(self, phase: str, images: Tensor, draws: Draws | None, generator: torch.Generator | None) -> Draws:
        """The draws for a batch, those given or new ones: a row for each image, on its device and in its dtype."""
        if draws is None:
            draws = self.draw(phase, len(images), generator)
        for name, tensor in draws.items():
            if len(tensor) != len(images):
                raise ValueError(f"draws: got {len(tensor)} rows of {name!r}, expected one per image, {len(images)}")
        return {name: tensor.to(images) for name, tensor in draws.items()}


def load(folder: str | os.PathLike[str]) -> Model:
    """The model that some `Model.save` wrote, of whatever family; raises as `Model.load` does."""
    return Model.load(folder)


def _version() -> str:
    # genmod.__version__, which is set by the time that anyone saves; the package's face lies above this module.
    return str(getattr(sys.modules["genmod"], "__version__", "unknown"))
