"""Decoders: DCGAN's generator in training, and the decoder of diffusers' AutoencoderKL in evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.steps import Contenders, Step
from genmod import nn as gnn

#: A quarter of Stable Diffusion's widths, so that a CPU decodes an image in a fraction of a second.
WIDTHS = (32, 64, 128, 128)


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


def _training(upsample: str, batch: int, device: torch.device, dtype: torch.dtype) -> Contenders:
    stock = dcgan64(upsample).to(device, dtype)
    z = torch.randn(batch, 100, 1, 1, device=device, dtype=dtype)
    # What a critic sends back; the critic itself costs the same whoever draws the images.
    cotangent = torch.randn(batch, 3, 64, 64, device=device, dtype=dtype) / batch

    ours = gnn.Decoder(gnn.DecoderConfig.dcgan(64, upsample=upsample), device=device, dtype=dtype)
    # The same parameters in the same order: under other names.
    ours.load_state_dict(dict(zip(ours.state_dict(), stock.state_dict().values(), strict=True)))
    last = copy.deepcopy(stock).to(memory_format=torch.channels_last)
    compiled, compiled_last = torch.compile(copy.deepcopy(stock)), torch.compile(copy.deepcopy(last))

    def step(model: nn.Module, form: torch.memory_format = torch.contiguous_format) -> Callable[[], Tensor]:
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
    expected, found = contenders["eager"](), contenders["genmod"]()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(ours.parameters(), stock.parameters(), strict=True):
        # Not element by element: an activation that rounding moves across ReLU's kink changes a whole pixel's gradient.
        assert (mine.grad - theirs.grad).norm() <= 1e-3 * theirs.grad.norm()
    return contenders


def _decoding(latent: int, device: torch.device, dtype: torch.dtype) -> Contenders:
    from diffusers.models.autoencoders.vae import Decoder

    stock = Decoder(
        in_channels=4,
        out_channels=3,
        up_block_types=("UpDecoderBlock2D",) * len(WIDTHS),
        block_out_channels=WIDTHS,
        layers_per_block=2,
        norm_num_groups=32,
    )
    stock = stock.to(device, dtype).eval()
    ours = gnn.Decoder(gnn.DecoderConfig.autoencoder_kl(WIDTHS), device=device, dtype=dtype).eval()
    ours.load_state_dict(stock.state_dict())
    last = copy.deepcopy(stock).to(memory_format=torch.channels_last)
    z = torch.randn(1, 4, latent, latent, device=device, dtype=dtype)

    def forward(model: nn.Module, z: Tensor = z) -> Callable[[], Tensor]:
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
    torch.testing.assert_close(contenders["genmod"](), contenders["eager"](), rtol=1e-3, atol=1e-4)
    return contenders


def _generator(upsample: str, batch: int = 32) -> Step:
    name = {"transposed": "transposed convolutions", "nearest": "upsampling and convolutions"}[upsample]
    return Step(
        "decoder_step",
        f"DCGAN-64 generator [{batch}, 100], {name}, forward and backward",
        lambda device, dtype: _training(upsample, batch, device, dtype),
    )


STEPS = (
    _generator("transposed"),
    _generator("nearest"),
    Step(
        "decoder_step",
        "AutoencoderKL decoder, a quarter of the width, latent [1, 4, 32, 32], forward in evaluation",
        lambda device, dtype: _decoding(32, device, dtype),
    ),
)
