"""Mixins of diffusers' modules. Each computes what the class behind it does, or calls that."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genmod import layout, ops
from genmod.nn.attention import attention
from genmod.nn.convolution import without_bias
from genmod.nn.residual import values_to_result
from genmod.ops._tracing import are_differentiated, gradients_are_on
from genmod.swap import activations
from genmod.swap.classes import Swapped
from genmod.swap.conditions import hooked, overridden
from genmod.swap.patterns import diffusers as patterns
from genmod.swap.patterns.norm_act import group_norm, why_stock
from genmod.swap.patterns.upsample_conv import upsample_conv
from genmod.swap.patterns.upsample_conv import why_stock as why_stock_upsample

_IDENTITY = activations.Options("identity", 0.01)


def _norm_act(norm: Any, act: Any, x: Tensor, x_bias: Tensor | None = None) -> Tensor:
    """Group norm and activation at once where that is covered, or one after the other; of `x` and a bias of its own."""
    if why_stock(x, norm.num_channels, norm.weight, norm.bias):
        return act(norm(_biased(x, x_bias)))
    return group_norm(norm, activations.options(act), x, x_bias=x_bias)


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else ops.bias_act(x, bias.to(x.dtype), activation="identity")


def _add(fresh: Tensor, other: Tensor, layer: nn.Module) -> Tensor:
    """The sum, without gradients in place of what `layer` has just made."""
    exclusive = not overridden(layer, (nn.Conv2d,)) and not hooked(layer) and fresh.dtype == other.dtype
    if are_differentiated(fresh, other) or not exclusive or torch._C._are_functorch_transforms_active():
        return fresh + other
    return fresh.add_(other)


class ResnetBlock2D(Swapped):
    """Mixin of `diffusers.models.resnet.ResnetBlock2D`."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Twice norm, activation and convolution, beside the shortcut."""
        why = "" if self._genmod_swap is None else patterns.why_not_resnet(self)
        if self._genmod_swap is None or why or args or kwargs:
            if why:
                self._genmod_stock(why)
            return super().forward(input_tensor, temb, *args, **kwargs)
        block: Any = self
        h, bias = without_bias(block.conv1, _norm_act(block.norm1, block.nonlinearity, input_tensor))
        if block.time_emb_proj is not None:
            temb = temb if block.skip_time_act else block.nonlinearity(temb)
            temb = block.time_emb_proj(temb)[:, :, None, None]
        if temb is None and block.time_embedding_norm != "scale_shift":
            h = _norm_act(block.norm2, block.nonlinearity, h, bias)
        else:
            h = self._genmod_norm2(_biased(h, bias), temb)
        h, bias = without_bias(block.conv2, block.dropout(h))
        if block.conv_shortcut is not None:
            input_tensor, other = without_bias(block.conv_shortcut, input_tensor)
            bias = other if bias is None else bias if other is None else bias + other
        h = _add(_biased(h, bias), input_tensor, block.conv2)
        return h if block.output_scale_factor == 1.0 else h / block.output_scale_factor

    def _genmod_norm2(self, h: Tensor, temb: Tensor | None) -> Tensor:
        """The second norm and activation, with the time embedding in front of it or in it."""
        block: Any = self
        if block.time_embedding_norm != "scale_shift":
            h = _add(h, temb, block.conv1) if temb is not None and block.time_embedding_norm == "default" else h
            return _norm_act(block.norm2, block.nonlinearity, h)
        if temb is None:
            raise ValueError("temb: got None, expected an embedding where time_embedding_norm is 'scale_shift'")
        norm, (scale, shift) = block.norm2, temb.chunk(2, dim=1)
        autocast = torch.is_autocast_enabled(h.device.type)  # there it is stock that decides on dtypes
        if autocast or temb.dtype != h.dtype or why_stock(h, norm.num_channels, norm.weight, norm.bias):
            return block.nonlinearity(norm(h) * (1 + scale) + shift)
        return group_norm(norm, activations.options(block.nonlinearity), h, scale[:, :, 0, 0], shift[:, :, 0, 0])


class Upsample2D(Swapped):
    """Mixin of `diffusers.models.upsampling.Upsample2D`."""

    def forward(self, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """The convolution of the upsampled image."""
        if self._genmod_swap is None:
            return super().forward(hidden_states, output_size, *args, **kwargs)
        conv = patterns.conv_of_upsample(self)
        why = patterns.why_not_upsample(self) or why_stock_upsample(conv, hidden_states)
        twice = tuple(2 * size for size in hidden_states.shape[-2:])
        if not why and output_size is not None and tuple(output_size) != twice:
            why = f"an output of size {tuple(output_size)}, not {twice}"
        if why or args or kwargs:
            if why:
                self._genmod_stock(why)
            return super().forward(hidden_states, output_size, *args, **kwargs)
        return upsample_conv(conv, hidden_states)


class Attention(Swapped):
    """Mixin of `diffusers.models.attention_processor.Attention` as autoencoders use it."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Self-attention over pixels."""
        folds = self._genmod_swap is not None and not gradients_are_on() and hidden_states.dim() == 4
        if folds:  # worth it where there are more pixels than channels
            batch, channels, height, width = hidden_states.shape
            folds = batch * height * width > channels and encoder_hidden_states is None and attention_mask is None
        if folds:
            why = patterns.why_not_attention(self) or self._genmod_why_stock(hidden_states, kwargs)
            if why:
                self._genmod_stock(why)
            folds = not why
        if not folds:
            return super().forward(hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        return self._genmod_folded(hidden_states)

    def _genmod_why_stock(self, x: Tensor, kwargs: dict[str, Any]) -> str:
        module: Any = self
        if module.to_out[1].training and module.to_out[1].p:
            return "dropout of the result"
        if any(value is not None for name, value in kwargs.items() if name != "temb"):
            return f"arguments {', '.join(kwargs)}"
        norm = module.group_norm
        return why_stock(x, norm.num_channels, norm.weight, norm.bias)

    def _genmod_folded(self, x: Tensor) -> Tensor:
        module: Any = self
        h = group_norm(module.group_norm, _IDENTITY, x)
        pixels = h.flatten(2).transpose(1, 2)
        weight, bias = values_to_result(module.to_v, module.to_out[0])
        h = attention(module.to_q(pixels), module.to_k(pixels), nn.functional.linear(pixels, weight, bias))
        h = h.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])  # in channels_last
        h = h.contiguous(memory_format=layout.memory_format_of(x))
        if module.residual_connection:
            h = h + x
        return h if module.rescale_output_factor == 1.0 else h / module.rescale_output_factor


def _inside(x: Tensor) -> Tensor:
    """An image in the memory format in which it was measured to be faster."""
    measured = x.dim() == 4 and x.device.type == "cpu" and x.dtype == torch.float32
    return x.contiguous(memory_format=torch.channels_last) if measured else x


class _Ends(Swapped):
    """What decoder and encoder share: a first convolution, blocks, and norm, activation and convolution at the end."""

    def _genmod_why_stock(self) -> str:
        module: Any = self
        if module.gradient_checkpointing and torch.is_grad_enabled():
            return "its blocks are checkpointed by itself"
        return patterns.why_not_norm(module.conv_norm_out, module.conv_act)

    def _genmod_end(self, x: Tensor, like: Tensor) -> Tensor:
        module: Any = self
        x = module.conv_out(_norm_act(module.conv_norm_out, module.conv_act, x))
        return x.contiguous(memory_format=layout.memory_format_of(like))


class Decoder(_Ends):
    """Mixin of `diffusers.models.autoencoders.vae.Decoder`."""

    def forward(self, sample: Tensor, latent_embeds: Tensor | None = None) -> Tensor:
        """From latent to image."""
        if self._genmod_swap is None or latent_embeds is not None:
            return super().forward(sample, latent_embeds)
        if why := self._genmod_why_stock():
            self._genmod_stock(why)
            return super().forward(sample, latent_embeds)
        module: Any = self
        x = module.mid_block(module.conv_in(_inside(sample)), None)
        for block in module.up_blocks:
            x = block(x, None)
        return self._genmod_end(x, sample)


class Encoder(_Ends):
    """Mixin of `diffusers.models.autoencoders.vae.Encoder`."""

    def forward(self, sample: Tensor) -> Tensor:
        """From image to latent."""
        if self._genmod_swap is None:
            return super().forward(sample)
        if why := self._genmod_why_stock():
            self._genmod_stock(why)
            return super().forward(sample)
        module: Any = self
        x = module.conv_in(_inside(sample))
        for block in module.down_blocks:
            x = block(x)
        return self._genmod_end(module.mid_block(x), sample)


class UNet2DModel(Swapped):
    """Mixin of `diffusers.models.unets.unet_2d.UNet2DModel`."""

    def forward(self, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        """In channels_last inside."""
        if self._genmod_swap is None:
            return super().forward(sample, *args, **kwargs)
        result = super().forward(_inside(sample), *args, **kwargs)
        outside = layout.memory_format_of(sample)
        if isinstance(result, tuple):
            return (result[0].contiguous(memory_format=outside), *result[1:])
        result.sample = result.sample.contiguous(memory_format=outside)
        return result


class AutoencoderKL(Swapped):
    """Mixin of diffusers' autoencoders whose `encode` makes a `DiagonalGaussianDistribution` of what it encodes."""

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """The posterior of a batch of images."""
        if self._genmod_swap is None:
            return super().encode(x, return_dict)  # type: ignore[misc]
        from genmod.swap.diffusers_posterior import encode

        return encode(self, x, return_dict)
