"""Decoders put together from a config: the autoencoder of latent diffusion, the generator of DCGAN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genmod import layout
from genmod.nn.blocks import ConvTransposeBlock, UpsampleBlock
from genmod.nn.conv4x4 import ConvTranspose4x4
from genmod.nn.convolution import without_bias
from genmod.nn.norm_act import GroupNormAct
from genmod.nn.residual import AttentionBlock, Branches, ResnetBlock, add, check_groups, normalize
from genmod.nn.upsample_conv import UpsampleConv2d
from genmod.ops import _checks

Blocks = Literal["residual", "plain"]
Upsample = Literal["nearest", "transposed"]

_EPS = 1e-6  # of every group norm in diffusers' autoencoders


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a :class:`Decoder`. Made by :meth:`autoencoder_kl` or :meth:`dcgan`.

    Attributes:
        latent_channels, out_channels: channels of what comes in and of the image.
        block_channels: channels of each stage, the one nearest to the image first, as in diffusers.
        blocks: "residual", or "plain": one convolution, batch norm and ReLU per stage.
        upsample: how a stage doubles the image: "nearest" and a 3x3 convolution, or a "transposed" convolution of 4x4.
        layers_per_block: residual blocks per stage, less one, as diffusers counts.
        num_groups: of the group norms.
        attention: whether the pixels attend to one another before the first stage.

    Raises:
        TypeError: a field of the wrong type.
        ValueError: a number that is not positive, an unknown word, no stages, `num_groups` that do not divide the
            channels of each stage, or residual blocks with transposed convolutions.
    """

    latent_channels: int
    out_channels: int
    block_channels: tuple[int, ...]
    blocks: Blocks
    upsample: Upsample = "nearest"
    layers_per_block: int = 2
    num_groups: int = 32
    attention: bool = True

    @classmethod
    def autoencoder_kl(
        cls,
        block_channels: tuple[int, ...] = (128, 256, 512, 512),
        latent_channels: int = 4,
        out_channels: int = 3,
        layers_per_block: int = 2,
        num_groups: int = 32,
        attention: bool = True,
    ) -> DecoderConfig:
        """The decoder of diffusers' `AutoencoderKL`: the defaults are those of Stable Diffusion.

        Rombach et al., *High-resolution image synthesis with latent diffusion models*, CVPR 2022.
        """
        stages = tuple(block_channels)
        return cls(
            latent_channels, out_channels, stages, "residual", "nearest", layers_per_block, num_groups, attention
        )

    @classmethod
    def dcgan(
        cls,
        size: int = 64,
        latent_channels: int = 100,
        width: int = 64,
        out_channels: int = 3,
        upsample: Upsample = "transposed",
    ) -> DecoderConfig:
        """DCGAN's generator of images of `size` x `size` pixels, a power of two from 8 on.

        `width` is the number of channels before the last convolution; each stage further from the image has twice as
        many. `upsample="nearest"` does without the checkerboard of transposed convolutions.
        Radford, Metz and Chintala, *Unsupervised representation learning with deep convolutional generative adversarial
        networks*, ICLR 2016.
        """
        _check_positive("size", size)
        stages = size.bit_length() - 3
        if stages < 1 or size != 4 << stages:
            raise ValueError(f"size: got {size}, expected a power of two, at least 8")
        _check_positive("width", width)
        channels = tuple(width << stage for stage in range(stages))
        return cls(latent_channels, out_channels, channels, "plain", upsample, attention=False)

    def __post_init__(self) -> None:
        for name in ("latent_channels", "out_channels", "layers_per_block", "num_groups"):
            _check_positive(name, getattr(self, name))
        if not isinstance(self.block_channels, tuple):
            raise TypeError(f"block_channels: got {type(self.block_channels).__name__}, expected a tuple")
        if not self.block_channels:
            raise ValueError("block_channels: got (), expected at least one stage")
        for channels in self.block_channels:
            _check_positive("block_channels", channels)
            if self.blocks == "residual":
                check_groups("block_channels", channels, self.num_groups)
        _checks.choice("blocks", self.blocks, ("residual", "plain"))
        _checks.choice("upsample", self.upsample, ("nearest", "transposed"))
        if self.blocks == "residual" and self.upsample != "nearest":
            raise ValueError(f"upsample: got {self.upsample!r}, expected 'nearest' between residual blocks")


class Decoder(nn.Module):
    """From latent to image: the decoder of `AutoencoderKL`, or the generator of DCGAN.

    With :meth:`DecoderConfig.autoencoder_kl` it computes what the decoder in diffusers' `AutoencoderKL` does, and has
    its state_dict: `Decoder(config).load_state_dict(vae.decoder.state_dict())`. With :meth:`DecoderConfig.dcgan` the
    parameters are those of `conv_in`, `up_blocks.N` (see :class:`ConvTransposeBlock` and :class:`UpsampleBlock`) and
    `conv_out`, and the image ends in a tanh.

    Args:
        config: the shape.
        memory_format: in which images are kept inside; what comes out is in the format of what came in. The default is
            `torch.channels_last`, in which convolutions are faster on the CPU and on tensor cores;
            `torch.contiguous_format` is the other. The weights are kept in it too.

    Shape:
        `[N, latent_channels, H, W]` to `[N, out_channels, fH, fW]`, where f is `2 ** (stages - 1)`; of DCGAN
        `[N, latent_channels]` or `[N, latent_channels, 1, 1]` to `[N, out_channels, size, size]`.

    Raises:
        ValueError: another memory format, or an input of another shape.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        memory_format: torch.memory_format = torch.channels_last,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if memory_format not in (torch.channels_last, torch.contiguous_format):
            raise ValueError(
                f"memory_format: got {memory_format}, expected channels_last or contiguous_format of torch"
            )
        self.config, self.memory_format = config, memory_format
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        if config.blocks == "residual":
            self._build_residual(config, options)
        else:
            self._build_plain(config, options)
        self.to(memory_format=memory_format)  # type: ignore[call-overload]  # missing in torch's stubs

    def _build_residual(self, config: DecoderConfig, options: dict[str, Any]) -> None:
        first, *_, last = (config.block_channels[-1], *reversed(config.block_channels))
        self.conv_in: nn.Module = nn.Conv2d(config.latent_channels, first, 3, padding=1, **options)
        self.mid_block = _MidBlock(first, config.num_groups, config.attention, options)
        self.up_blocks = nn.ModuleList()
        inputs = first
        for stage, outputs in enumerate(reversed(config.block_channels), 1):
            upsample = stage < len(config.block_channels)
            self.up_blocks.append(
                _UpBlock(inputs, outputs, config.layers_per_block + 1, config.num_groups, upsample, options)
            )
            inputs = outputs
        self.conv_norm_out = GroupNormAct(config.num_groups, last, _EPS, **options)
        self.conv_out: nn.Module = nn.Conv2d(last, config.out_channels, 3, padding=1, **options)

    def _build_plain(self, config: DecoderConfig, options: dict[str, Any]) -> None:
        first, *rest = reversed(config.block_channels)
        self.conv_in = ConvTransposeBlock(config.latent_channels, first, 4, 1, 0, **options)
        block = ConvTransposeBlock if config.upsample == "transposed" else UpsampleBlock
        self.up_blocks = nn.ModuleList()
        inputs = first
        for outputs in rest:
            self.up_blocks.append(block(inputs, outputs, **options))
            inputs = outputs
        if config.upsample == "transposed":
            transposed = ConvTranspose4x4(inputs, config.out_channels, bias=False, **options)
            nn.init.normal_(transposed.weight, 0.0, 0.02)
            self.conv_out = transposed
        else:
            self.conv_out = UpsampleConv2d(inputs, config.out_channels, **options)

    def forward(self, z: Tensor) -> Tensor:
        """The image."""
        config = self.config
        if config.blocks == "plain" and z.dim() == 2:
            z = z[:, :, None, None]
        if z.dim() != 4 or z.shape[1] != config.latent_channels or (config.blocks == "plain" and z.shape[2:] != (1, 1)):
            wanted = f"[N, {config.latent_channels}, H, W]"
            if config.blocks == "plain":
                wanted = f"[N, {config.latent_channels}] or [N, {config.latent_channels}, 1, 1]"
            raise ValueError(f"z: got shape {tuple(z.shape)}, expected {wanted}")
        outside = layout.memory_format_of(z)
        x = self.conv_in(z.contiguous(memory_format=self.memory_format))
        x = self._residual(x) if config.blocks == "residual" else self._plain(x)
        return x.contiguous(memory_format=outside)

    def _residual(self, x: Tensor) -> Tensor:
        residual, bias = None, None
        for block in (self.mid_block, *self.up_blocks):
            x, residual, bias = block(x, residual, bias)
        x, _ = normalize(self.conv_norm_out, x, residual, bias)
        return self.conv_out(x)

    def _plain(self, x: Tensor) -> Tensor:
        for block in self.up_blocks:
            x = block(x)
        return torch.tanh(self.conv_out(x))

    def extra_repr(self) -> str:
        """The config, for `repr`."""
        return f"{self.config}, memory_format={self.memory_format}"


class _MidBlock(nn.Module):
    """Residual block, attention if wanted, residual block; takes and gives the summands of an image."""

    def __init__(self, channels: int, groups: int, attention: bool, options: dict[str, Any]) -> None:
        super().__init__()
        self.attentions = nn.ModuleList()
        if attention:
            self.attentions.append(AttentionBlock(channels, groups=groups, eps=_EPS, **options))
        self.resnets = nn.ModuleList(ResnetBlock(channels, groups=groups, eps=_EPS, **options) for _ in range(2))

    def forward(self, x: Tensor, residual: Tensor | None, bias: Tensor | None) -> Branches:
        """See the class."""
        for block in (self.resnets[0], *self.attentions, self.resnets[1]):
            x, residual, bias = block.branches(x, residual, bias)
        return x, residual, bias


class _UpBlock(nn.Module):
    """Residual blocks, then twice the size if wanted; takes and gives the summands of an image."""

    def __init__(
        self, inputs: int, outputs: int, layers: int, groups: int, upsample: bool, options: dict[str, Any]
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(outputs if layer else inputs, outputs, groups=groups, eps=_EPS, **options)
            for layer in range(layers)
        )
        self.upsamplers = nn.ModuleList()
        if upsample:
            self.upsamplers.append(nn.ModuleDict({"conv": UpsampleConv2d(outputs, outputs, **options)}))

    def forward(self, x: Tensor, residual: Tensor | None, bias: Tensor | None) -> Branches:
        """See the class."""
        for block in self.resnets:
            assert isinstance(block, ResnetBlock)
            x, residual, bias = block.branches(x, residual, bias)
        for upsampler in self.upsamplers:
            assert isinstance(upsampler, nn.ModuleDict)
            x, bias = without_bias(upsampler["conv"], add(x, residual, bias))
            residual = None
        return x, residual, bias


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, expected an integer")
    if value < 1:
        raise ValueError(f"{name}: got {value}, expected a positive integer")
