"""Decoders: DCGAN's generator in training, and the decoder of diffusers' AutoencoderKL in evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from genmod import nn as gnn
from genmod.bench.step import Contenders, Step, agree, alike, exactly
from genmod.nn.decoder import Upsample

#: A quarter of Stable Diffusion's widths, so that a CPU decodes an image in a fraction of a second.
WIDTHS = (32, 64, 128, 128)
FULL_WIDTHS = (128, 256, 512, 512)


def dcgan64(upsample: str) -> nn.Sequential:
    """DCGAN's generator at 64 x 64 as people write it (Radford et al. 2016)."""

    def doubling(inputs: int, outputs: int) -> list[nn.Module]:
        if upsample == "transposed":
            return [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)]
        return [nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, 3, padding=1, bias=outputs == 3)]

    layers: list[nn.Module] = [nn.ConvTranspose2d(100, 512, 4, 1, 0, bias=False), nn.BatchNorm2d(512), nn.ReLU(True)]
    for inputs, outputs in ((512, 256), (256, 128), (128, 64)):
        layers += [*doubling(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(True)]
    return nn.Sequential(*layers, *doubling(64, 3), nn.Tanh())


def _in_channels_last(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs


def _training(upsample: Upsample, batch: int, device: torch.device, dtype: torch.dtype) -> Contenders:
    stock = dcgan64(upsample).to(device, dtype)
    z = torch.randn(batch, 100, 1, 1, device=device, dtype=dtype)
    # What a critic sends back; the critic itself costs the same whoever draws the images.
    cotangent = torch.randn(batch, 3, 64, 64, device=device, dtype=dtype) / batch

    ours = gnn.Decoder(gnn.DecoderConfig.dcgan(64, upsample=upsample), device=device, dtype=dtype)
    # The same parameters in the same order: under other names.
    ours.load_state_dict(dict(zip(ours.state_dict(), stock.state_dict().values(), strict=True)))
    last = _in_channels_last(stock)
    compiled, compiled_last = torch.compile(copy.deepcopy(stock)), torch.compile(copy.deepcopy(last))

    def step(model: Any, form: torch.memory_format = torch.contiguous_format) -> Callable[[], Tensor]:
        z_, cotangent_ = z.contiguous(memory_format=form), cotangent.contiguous(memory_format=form)

        def run() -> Tensor:
            for p in model.parameters():
                p.grad = None
            images = model(z_)
            images.backward(cotangent_)
            return images

        return run

    contenders = {
        "eager": step(stock),
        "eager:channels_last": step(last, torch.channels_last),
        "compile": step(compiled),
        "compile:channels_last": step(compiled_last, torch.channels_last),
        "genmod": step(ours),
    }
    with exactly():
        alike(contenders["genmod"](), contenders["eager"]())
    agree(stock, contenders["eager"], ours, contenders["genmod"])
    return contenders


def _autoencoder_kl(
    latent_channels: int, widths: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, nn.Module]:
    """diffusers' decoder and ours, with the same weights."""
    from diffusers.models.autoencoders.vae import Decoder

    stock = Decoder(
        in_channels=latent_channels,
        out_channels=3,
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=2,
        norm_num_groups=32,
    ).to(device, dtype)
    config = gnn.DecoderConfig.autoencoder_kl(widths, latent_channels=latent_channels)
    ours = gnn.Decoder(config, device=device, dtype=dtype)
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def _decoding(
    latent_channels: int, latent: int, widths: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Contenders:
    stock, ours = (m.eval() for m in _autoencoder_kl(latent_channels, widths, device, dtype))
    last = _in_channels_last(stock)
    z = torch.randn(1, latent_channels, latent, latent, device=device, dtype=dtype)

    def forward(model: Callable[..., Tensor], z: Tensor = z) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.no_grad():
                return model(z)

        return run

    contenders = {
        "eager": forward(stock),
        "eager:channels_last": forward(last, z.contiguous(memory_format=torch.channels_last)),
        "compile": forward(torch.compile(stock)),
        "genmod": forward(ours),
    }
    with exactly():
        alike(contenders["genmod"](), contenders["eager"]())
    return contenders


def _trained(stock: nn.Module, ours: nn.Module, x: Tensor) -> Contenders:
    """A forward and a backward pass of a module and of ours in its place."""

    def step(model: Callable[..., Tensor], named: nn.Module) -> Callable[[], None]:
        def run() -> None:
            named.zero_grad()
            y = model(x)
            y.backward(torch.ones_like(y) / y.numel())

        return run

    compiled = copy.deepcopy(stock)
    contenders = {
        "eager": step(stock, stock),
        "compile": step(torch.compile(compiled), compiled),
        "genmod": step(ours, ours),
    }
    agree(stock, contenders["eager"], ours, contenders["genmod"])
    return contenders


def _decoder_training(
    latent_channels: int, batch: int, latent: int, widths: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Contenders:
    stock, ours = _autoencoder_kl(latent_channels, widths, device, dtype)
    return _trained(stock, ours, torch.randn(batch, latent_channels, latent, latent, device=device, dtype=dtype))


def _resnet_block(batch: int, channels: int, size: int, device: torch.device, dtype: torch.dtype) -> Contenders:
    from diffusers.models.resnet import ResnetBlock2D

    no_time: Any = None  # what the stubs do not know is allowed
    stock = ResnetBlock2D(in_channels=channels, temb_channels=no_time).to(device, dtype)
    ours = gnn.ResnetBlock(channels, device=device, dtype=dtype)
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(batch, channels, size, size, device=device, dtype=dtype)
    return _trained(_WithoutTime(stock), ours, x)


class _WithoutTime(nn.Module):
    """diffusers' block asks for a time embedding even where it has no use for one."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, None)


def _generator(upsample: Upsample, batch: int = 32) -> Step:
    name = {"transposed": "transposed convolutions", "nearest": "upsampling and convolutions"}[upsample]
    return Step(
        "decoder_step",
        f"DCGAN-64 generator [{batch}, 100], {name}, forward and backward",
        lambda device, dtype: _training(upsample, batch, device, dtype),
        lambda device, dtype: _training(upsample, 2, device, dtype),
    )


_NARROW = (32, 32)


def _decoder(model: str, latent_channels: int) -> tuple[Step, Step]:
    evaluation = f"{model} VAE decoder, a quarter of the width, latent [1, {latent_channels}, 32, 32], forward"
    training = (
        f"{model} VAE decoder, a quarter of the width, latent [2, {latent_channels}, 16, 16], forward and backward"
    )
    return (
        Step(
            "decoder_step", f"{evaluation} in evaluation",
            lambda device, dtype: _decoding(latent_channels, 32, WIDTHS, device, dtype),
            lambda device, dtype: _decoding(latent_channels, 4, _NARROW, device, dtype),
        ),
        Step(
            "decoder_step", training,
            lambda device, dtype: _decoder_training(latent_channels, 2, 16, WIDTHS, device, dtype),
            lambda device, dtype: _decoder_training(latent_channels, 1, 4, _NARROW, device, dtype),
        ),
    )  # fmt: skip


def _on_gpu(model: str, latent_channels: int, size: int) -> Step:
    return Step(
        "decoder_step",
        f"{model} VAE decoder, {size} x {size} pixels, forward in evaluation",
        lambda device, dtype: _decoding(latent_channels, size // 8, FULL_WIDTHS, device, dtype),
        lambda device, dtype: _decoding(latent_channels, 4, _NARROW, device, dtype),
        gpu=True,
    )


STEPS = (
    _generator("transposed"),
    _generator("nearest"),
    *_decoder("SD", 4),
    *_decoder("FLUX", 16),
    _on_gpu("SD", 4, 1024),
    _on_gpu("FLUX", 16, 1024),
    _on_gpu("SD", 4, 2048),
    Step(
        "decoder_step",
        "SD VAE decoder, [8, 3, 256, 256], forward and backward",
        lambda device, dtype: _decoder_training(4, 8, 32, FULL_WIDTHS, device, dtype),
        lambda device, dtype: _decoder_training(4, 1, 4, _NARROW, device, dtype),
        gpu=True,
    ),
    Step(
        "decoder_step",
        "diffusers' ResnetBlock2D [4, 128, 32, 32], forward and backward",
        lambda device, dtype: _resnet_block(4, 128, 32, device, dtype),
        lambda device, dtype: _resnet_block(1, 32, 4, device, dtype),
    ),
)
