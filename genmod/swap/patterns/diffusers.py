"""diffusers: residual blocks, upsampling, the middle's attention, decoders and encoders, and the posterior.

Matched by name: diffusers itself is not imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from genmod.swap import activations
from genmod.swap.conditions import hooked, overridden
from genmod.swap.pattern import Exactness, ModulePattern
from genmod.swap.patterns import norm_act, upsample_conv

_MODELS = "diffusers.models"
_LARGER = "error at most twice stock's own, through all layers 1e-4 of the largest value in float32"


def why_not_norm(norm: Any, act: Any) -> str:
    """Why a group norm and an activation behind it are not one pass."""
    why = overridden(norm, (nn.GroupNorm,)) or overridden(act, activations.MODULES) or hooked(norm, act)
    return why or norm_act.why_not_group_norm(norm) or activations.why_not(act)


def why_not_resnet(block: Any) -> str:
    """Why a `ResnetBlock2D` is not covered."""
    if block.upsample is not None or block.downsample is not None:
        return "it resamples between norm and convolution"
    if block.time_embedding_norm not in ("default", "scale_shift", "group"):
        return f"time_embedding_norm is {block.time_embedding_norm!r}"
    return why_not_norm(block.norm1, block.nonlinearity) or why_not_norm(block.norm2, block.nonlinearity)


def conv_of_upsample(module: Any) -> Any:
    """The convolution of an `Upsample2D`, under either of its names."""
    return module.conv if module.name == "conv" else module.Conv2d_0


def why_not_upsample(module: Any) -> str:
    """Why an `Upsample2D` is not covered."""
    if not module.use_conv or module.use_conv_transpose or not module.interpolate:
        return "there is no interpolation with a convolution behind it"
    if module.norm is not None:
        return "it normalises first"
    conv = conv_of_upsample(module)
    return overridden(conv, (nn.Conv2d,)) or hooked(conv) or upsample_conv.why_not_conv(conv)


def why_not_attention(module: Any) -> str:
    """Why the projections of values and results of an `Attention` are not one."""
    if type(module.processor).__name__ != "AttnProcessor2_0":
        return f"its processor is {type(module.processor).__name__}"
    if module.heads != 1:
        return f"{module.heads} heads: each would need a product of its own"
    if module.fused_projections or module.to_out is None or module.to_v is None or module.to_k is None:
        return "its projections are fused or missing"
    extras = ("spatial_norm", "norm_q", "norm_k", "norm_cross", "add_k_proj", "add_v_proj")
    found = next((name for name in extras if getattr(module, name, None) is not None), None)
    if found is not None and getattr(module, found) is not False:
        return f"it has {found}"
    if module.group_norm is None:
        return "it has no group norm"
    linears = (module.to_q, module.to_k, module.to_v, module.to_out[0])
    why = next((w for w in (overridden(m, (nn.Linear,)) for m in linears) if w), "")
    why = why or overridden(module.group_norm, (nn.GroupNorm,)) or norm_act.why_not_group_norm(module.group_norm)
    return why or hooked(module.group_norm, *linears, *module.to_out)


def _end(module: Any) -> str:
    return why_not_norm(module.conv_norm_out, module.conv_act)


def _module(
    name: str, original: str, mixin: str, became: str, why_not: Any = None, *, exactness: Exactness = "reassociated",
    bound: str = norm_act.BOUND, **options: Any,
) -> ModulePattern:  # fmt: skip
    def refuse(module: nn.Module, before: Sequence[nn.Module | None]) -> str:
        return why_not(module) if why_not else ""

    return ModulePattern(
        name=name,
        original=f"{_MODELS}.{original}",
        mixin=f"genmod.swap.diffusers:{mixin}",
        became=became,
        exactness=exactness,
        bound=bound,
        why_not=refuse,
        **options,
    )


_RESNET = "group norm and activation in one pass, twice; no division by 1.0"
_ENDS = "channels_last inside; group norm and activation at the end in one pass"
_POSTERIOR = "posterior without copies; a sample and its divergence in one pass each, with torch's noise"
MODULES = (
    _module("diffusers_resnet", "resnet:ResnetBlock2D", "ResnetBlock2D", _RESNET, why_not_resnet),
    _module(
        "diffusers_upsample",
        "upsampling:Upsample2D",
        "Upsample2D",
        "one convolution without the upsampled image",
        why_not_upsample,
    ),
    _module(
        "diffusers_attention",
        "attention_processor:Attention",
        "Attention",
        "projections of values and results folded into one, where there is no gradient",
        why_not_attention,
        modes="evaluation",
        allow_half="folded",
    ),
    _module("diffusers_decoder", "autoencoders.vae:Decoder", "Decoder", _ENDS, _end, bound=_LARGER),
    _module("diffusers_encoder", "autoencoders.vae:Encoder", "Encoder", _ENDS, _end, bound=_LARGER),
    _module("diffusers_unet2d", "unets.unet_2d:UNet2DModel", "UNet2DModel", "channels_last inside", bound=_LARGER),
    _module("diffusers_posterior", "autoencoders.autoencoder_kl:AutoencoderKL", "AutoencoderKL", _POSTERIOR),
    _module("diffusers_posterior", "autoencoders.autoencoder_kl_flux2:AutoencoderKLFlux2", "AutoencoderKL", _POSTERIOR),
)
