"""A trained encoder made into a classifier."""

from __future__ import annotations

import copy
from typing import Any, Literal

from torch import Tensor, nn

Freeze = bool | int | Literal["features"]


class Classifier(nn.Module):
    """An encoder and a linear layer, with parts of the encoder frozen or none; made by :func:`transfer`.

    What is frozen requires no gradient and stays in evaluation mode whatever `train` says, so that neither an optimizer
    nor a batch norm's running averages change it. The state_dict's keys are `encoder.*` and `head.*`.

    Shape:
        the encoder's input to logits `[B, num_classes]`.
    """

    def __init__(self, encoder: nn.Module, head: nn.Linear, frozen: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.frozen = frozen  # names of submodules, so that a copy of this module means its own
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.head(self.encoder(x))

    def train(self, mode: bool = True) -> Classifier:
        """As `nn.Module.train`, without what is frozen."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        return [self.get_submodule(name) for name in self.frozen]


def transfer(
    encoder: nn.Module,
    num_classes: int,
    *,
    freeze: Freeze = False,
    num_features: int | None = None,
) -> Classifier:
    """A classifier on an encoder that was trained for something else.

    Args:
        encoder: a module from its input to `[B, num_features]`, such as the `encoder` of an
            :class:`~genmod.models.autoencoder.Autoencoder`, a VAE or a :class:`genmod.pretext.PretextModel`. It is
            copied: training the classifier leaves the one given as it is.
        num_classes: outputs of the linear layer put behind it, which starts as `nn.Linear` does.
        freeze: False to train everything; True to train the linear layer only; an integer n to freeze the first n of
            `encoder.stages`; "features" to freeze all of them, but not what else the encoder has.
        num_features: by default the encoder's attribute of that name.

    Raises:
        TypeError: an encoder that is no module, or of no known `num_features`; a `freeze` of another type.
        ValueError: fewer than 2 classes, or stages to be frozen that the encoder does not have.
    """
    if not isinstance(encoder, nn.Module):
        raise TypeError(f"encoder: got {type(encoder).__name__}, expected a torch.nn.Module")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):
        raise TypeError(f"num_classes: got {num_classes!r}, expected an integer")
    if num_classes < 2:
        raise ValueError(f"num_classes: got {num_classes}, expected at least 2")
    features: Any = getattr(encoder, "num_features", None) if num_features is None else num_features
    if not isinstance(features, int):
        raise TypeError(
            f"num_features: got {features!r}, expected an integer, because {type(encoder).__name__} has no attribute "
            "of that name that says how many features it makes"
        )
    weight = next(encoder.parameters(), None)
    options = {} if weight is None else {"device": weight.device, "dtype": weight.dtype}
    head = nn.Linear(features, num_classes, **options)
    return Classifier(copy.deepcopy(encoder), head, _frozen(encoder, freeze))


def _frozen(encoder: nn.Module, freeze: Any) -> tuple[str, ...]:
    """The names, inside a `Classifier`, of what is to be frozen."""
    if isinstance(freeze, bool):
        return ("encoder",) if freeze else ()
    if not isinstance(freeze, int) and freeze != "features":
        raise TypeError(f"freeze: got {freeze!r}, expected True, False, a number of stages, or 'features'")
    stages = getattr(encoder, "stages", None)
    if not isinstance(stages, nn.Sequential):
        raise ValueError(f"freeze: got {freeze!r}, expected True or False, because the encoder has no `stages`")
    if freeze == "features":
        return ("encoder.stages",)
    if not 0 <= freeze <= len(stages):
        raise ValueError(f"freeze: got {freeze}, expected 0 to {len(stages)}, the number of the encoder's stages")
    return tuple(f"encoder.stages.{number}" for number in range(freeze))
