"""What each pattern of `genmod.accelerate` gains by itself: a module that is nothing but it, swapped and as it was.

`genmod.swap.gains` has these numbers.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import genmod
from genmod.bench.step import Contenders, Step, alike

Build = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


def _images(*shape: int) -> tuple[Tensor]:
    return (torch.randn(shape),)


def _upsample_conv_act() -> tuple[nn.Module, tuple[Tensor, ...]]:
    up, conv = nn.Upsample(scale_factor=2), nn.Conv2d(128, 128, 3, padding=1)
    return nn.Sequential(up, conv, nn.ReLU()), _images(16, 128, 16, 16)


def _conv_bn_act() -> tuple[nn.Module, tuple[Tensor, ...]]:
    conv = nn.Conv2d(64, 128, 4, 2, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(128), nn.LeakyReLU(0.2)), _images(32, 64, 32, 32)


def _conv_bn() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)), _images(16, 64, 32, 32)


def _conv_transpose_bn_act() -> tuple[nn.Module, tuple[Tensor, ...]]:
    conv = nn.ConvTranspose2d(256, 128, 4, 2, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(128), nn.ReLU()), _images(32, 256, 8, 8)


def _bias_act() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU()), _images(16, 3, 64, 64)


class _Alone(nn.Module):
    """Not a Sequential, so that no run of modules takes it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)


def _conv4x4() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _Alone(nn.Conv2d(64, 128, 4, 2, 1)), _images(32, 64, 32, 32)


def _conv_transpose4x4() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _Alone(nn.ConvTranspose2d(256, 128, 4, 2, 1)), _images(32, 256, 8, 8)


def _mse() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _Alone(nn.MSELoss()), (*_images(128, 3, 32, 32), *_images(128, 3, 32, 32))


class _Pythae(nn.Module):
    """The loss of one of pythae's models, with a reconstruction and a posterior as its networks would make them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        models: Any = __import__("pythae.models", fromlist=[kind])
        config = getattr(models, f"{kind}Config")(input_dim=(3, 32, 32), latent_dim=64)
        self.model = getattr(models, kind)(config)

    def forward(self, reconstruction: Tensor, x: Tensor, *posterior: Tensor) -> Tensor:
        found = self.model.loss_function(reconstruction, x, *posterior, *posterior[:1])
        loss: Tensor = found[0] if isinstance(found, tuple) else found
        return loss


def _pythae(kind: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    posterior = () if kind == "AE" else (torch.randn(128, 64), torch.randn(128, 64))
    return _Pythae(kind), (torch.rand(128, 3, 32, 32), torch.rand(128, 3, 32, 32), *posterior)


def _resnet() -> tuple[nn.Module, tuple[Tensor, ...]]:
    from diffusers.models.resnet import ResnetBlock2D

    without_time: Any = None

    return _Alone(_WithoutTime(ResnetBlock2D(in_channels=64, temb_channels=without_time))), _images(1, 64, 64, 64)


class _WithoutTime(_Alone):
    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs, None)


def _attention() -> tuple[nn.Module, tuple[Tensor, ...]]:
    from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D

    without_time: Any = None

    block = UNetMidBlock2D(in_channels=128, temb_channels=without_time, attention_head_dim=128)
    return _Alone(block.attentions[0]), _images(1, 128, 32, 32)


def _encoder() -> tuple[nn.Module, tuple[Tensor, ...]]:
    from diffusers.models.autoencoders.vae import Encoder

    widths = (32, 64, 128, 128)
    return _Alone(Encoder(3, 4, ("DownEncoderBlock2D",) * 4, widths, 2, 32)), _images(1, 3, 128, 128)


def _unet() -> tuple[nn.Module, tuple[Tensor, ...]]:
    from diffusers import UNet2DModel

    model: Any = UNet2DModel(
        sample_size=32, block_out_channels=(64, 128), layers_per_block=1, norm_num_groups=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return _Denoiser(model), _images(4, 3, 32, 32)


class _Denoiser(_Alone):
    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs, 10).sample


def _contenders(build: Build, pattern: str, training: bool, device: torch.device, dtype: torch.dtype) -> Contenders:
    made, inputs = build()
    stock = made.to(device, dtype).train(training)
    ours, given = copy.deepcopy(stock), [t.to(device, dtype) for t in inputs]
    report = genmod.accelerate(ours, training=training)
    if pattern not in {swap.pattern for swap in report}:
        raise RuntimeError(f"{pattern} is not among what was swapped: {report}")

    def run(model: nn.Module) -> Callable[[], Any]:
        def forward() -> Any:
            with torch.no_grad():
                return model(*given)

        def step() -> Any:
            for p in model.parameters():
                p.grad = None
            # The second is the data that a loss compares with.
            leaves = [t if i == 1 else t.detach().requires_grad_() for i, t in enumerate(given)]
            y = model(*leaves)
            y.backward(torch.ones_like(y))
            return y.detach()

        return step if training else forward

    contenders = {"eager": run(stock), "genmod": run(ours)}
    alike(contenders["genmod"](), contenders["eager"]())
    return contenders


_BUILDERS: dict[str, Build] = {
    "upsample_conv_act": _upsample_conv_act,
    "conv_bn_act": _conv_bn_act,
    "conv_bn": _conv_bn,
    "conv_transpose_bn_act": _conv_transpose_bn_act,
    "bias_act": _bias_act,
    "conv4x4": _conv4x4,
    "conv_transpose4x4": _conv_transpose4x4,
    "mse_loss": _mse,
    "pythae_vae_loss": functools.partial(_pythae, "VAE"),
    "pythae_betavae_loss": functools.partial(_pythae, "BetaVAE"),
    "pythae_ae_loss": functools.partial(_pythae, "AE"),
    "diffusers_resnet": _resnet,
    "diffusers_attention": _attention,
    "diffusers_encoder": _encoder,
    "diffusers_unet2d": _unet,
}
_EVALUATION_ONLY = ("bias_act", "diffusers_attention")


def _step(name: str, build: Build, training: bool) -> Step:
    make = functools.partial(_contenders, build, name, training)
    return Step("pattern", f"pattern {name}, {'training' if training else 'evaluation'}", make)


STEPS = tuple(
    _step(name, build, training)
    for name, build in _BUILDERS.items()
    for training in ((False,) if name in _EVALUATION_ONLY else (False, True))
)
