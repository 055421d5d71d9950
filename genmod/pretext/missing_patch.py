"""Missing patch: what was in the block that was cut out? (Context encoder.)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from genmod import ops
from genmod.nn import CriticConv2d, CriticLeakyReLU, CriticLinear
from genmod.pretext.heads import ImageHead
from genmod.pretext.task import Draws, Shape, Task, device_of, number

PLACES = ("random", "center")


class Hole(NamedTuple):
    """The whole images and where they were cut."""

    images: Tensor  #: `[B, C, H, W]`
    mask: Tensor  #: `[B, 1, H, W]`, true where the block was


@dataclass(frozen=True)
class MissingPatch(Task):
    r"""Fill in a block that was cut out of an image (Pathak et al., *Context encoders*, CVPR 2016).

    The block is replaced by the mean colour of the image's rest. The loss is
    :math:`(1-\lambda)\,\mathcal L_{rec} + \lambda\,\mathcal L_{adv}`: the squared error of a missing pixel, and a
    non-saturating adversarial loss of the image with its block filled in, from a critic that is trained beside it.
    The score is the squared error, and chance is that of the fill colour.

    Attributes:
        size: side of the block as a part of the image's; 0.5 is the paper's for the centre.
        place: "random" (anywhere inside) or "center".
        adversarial: lambda in [0, 1); 0 for no critic. The paper's is 0.001.
        critic_width: feature maps of the critic's first convolution.
    """

    name: ClassVar[str] = "missing_patch"
    size: float = 0.5
    place: Literal["random", "center"] = "random"
    adversarial: float = 0.001
    critic_width: int = 16

    def __post_init__(self) -> None:
        number("size", self.size, most=1, open=True)
        if self.size == 1:
            raise ValueError("size: got 1, expected less: something of the image has to be left")
        if self.place not in PLACES:
            raise ValueError(f"place: got {self.place!r}, expected 'random' or 'center'")
        number("adversarial", self.adversarial, most=1)
        if self.adversarial == 1:
            raise ValueError("adversarial: got 1, expected less: the reconstruction needs a weight too")

    def block(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the block in an image of this size."""
        return max(1, round(self.size * height)), max(1, round(self.size * width))

    def draw(self, n: int, shape: Shape, generator: torch.Generator | None = None) -> Draws:
        """Two uniform numbers for each image: where the block is."""
        if self.place == "center":
            return {}
        return {"place": torch.rand(n, 2, generator=generator, device=device_of(generator))}

    def transform(
        self, x: Tensor, generator: torch.Generator | None = None, *, draws: Draws | None = None
    ) -> tuple[Tensor, Hole]:
        """Images to images with a hole, and a :class:`Hole`."""
        draws = self._prepare(x, generator, draws)
        size, block = tuple(x.shape[2:]), self.block(*x.shape[2:])
        if block == size:
            raise ValueError(f"x: got {size[0]} x {size[1]} pixels, of which a block of size={self.size} leaves none")
        inside = []
        for axis in (0, 1):
            room = size[axis] - block[axis]
            if self.place == "center":
                start = torch.full((len(x), 1), room // 2, device=x.device)
            else:
                start = (draws["place"][:, axis, None] * (room + 1)).long().clamp(max=room)
            pixel = torch.arange(size[axis], device=x.device)
            inside.append((pixel >= start) & (pixel < start + block[axis]))
        mask = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
        seen = (x * ~mask).sum((2, 3), keepdim=True, dtype=torch.float32) / (~mask).sum((2, 3), keepdim=True)
        return torch.where(mask, seen.to(x.dtype), x), Hole(x, mask)

    def head(self, encoder: Any, shape: Shape) -> nn.Module:
        """Upsampling stages."""
        channels, height, width = shape
        return ImageHead(encoder.feature_shape, (channels, height, width))

    def predict(self, encoder: Any, head: nn.Module, input: Tensor) -> Tensor:
        """Images `[B, C, H, W]`, of which only the block counts."""
        return head(encoder.features(input))

    def filled(self, output: Tensor, target: Hole) -> Tensor:
        """The images with their block as in the output."""
        return torch.where(target.mask, output.to(target.images.dtype), target.images)

    def loss(self, output: Tensor, target: Hole) -> Tensor:
        """The reconstruction's part: the same as the score."""
        return self.score(output, target)

    def score(self, output: Tensor, target: Hole) -> Tensor:
        """The squared error of a missing pixel's channel."""
        mask = target.mask.expand_as(target.images)
        return ops.mse(output, target.images, mask=mask, reduction="mean")

    def chance(self, input: Tensor, target: Hole) -> float:
        """The score of the fill colour."""
        return float(self.score(input, target))

    def critic(self, shape: Shape) -> nn.Module | None:
        """A critic of images of this shape, piecewise linear, from the layers for critics; None without adversarial."""
        if not self.adversarial:
            return None
        channels, height, width = shape
        layers: list[nn.Module] = []
        features = self.critic_width
        while min(height, width) > 4:
            layers += [CriticConv2d(channels, features, 4, stride=2, padding=1), CriticLeakyReLU(0.2)]
            channels, height, width, features = features, height // 2, width // 2, min(2 * features, 128)
        return nn.Sequential(*layers, nn.Flatten(), CriticLinear(channels * height * width, 1))
