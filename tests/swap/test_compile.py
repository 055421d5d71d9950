"""torch.compile over accelerated models: one graph wherever stock PyTorch gets one of the stock model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import genmod

from .common import close
from .test_critic import StyleGAN2Critic
from .test_encoders import ResNet
from .test_losses import pythae_models

# Batches of two: of one, PyTorch's own group norm does not compile in every memory format.
_LATENT, _IMAGE = (2, 4, 16, 16), (2, 3, 16, 16)
_KL: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
}


def diffusers_model(name: str, **options: Any) -> nn.Module:
    return getattr(pytest.importorskip("diffusers"), name)(**options)


def posterior(model: Any, x: Tensor) -> Tensor:
    found = model.encode(x).latent_dist
    return model.decode(found.mode()).sample + found.kl().reshape(-1, 1, 1, 1)


def dcgan() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(8, 32, 4, 1, 0, bias=False), nn.BatchNorm2d(32), nn.ReLU(True),
        nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True),
        nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip


def tiny() -> nn.Module:
    few = {f"{side}_block_out_channels": (16, 16) for side in ("encoder", "decoder")}
    return diffusers_model("AutoencoderTiny", **few, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))


def unet() -> nn.Module:
    return diffusers_model(
        "UNet2DModel",
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )


def vq(norm_type: str) -> nn.Module:
    return diffusers_model("VQModel", **_KL, latent_channels=3, num_vq_embeddings=16, norm_type=norm_type)


# A factory, a call, and the shape of its input.
PEERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "AutoencoderKL decoder": (
        lambda: diffusers_model("AutoencoderKL", **_KL).decoder,  # type: ignore[return-value]
        lambda model, z: model(z),
        _LATENT,
    ),
    "AutoencoderKL": (lambda: diffusers_model("AutoencoderKL", **_KL), posterior, _IMAGE),
    "AutoencoderTiny": (tiny, lambda model, x: model(x).sample, _IMAGE),
    "VQModel": (lambda: vq("group"), lambda model, x: model.decode(x).sample, _IMAGE),
    "VQModel, spatial": (lambda: vq("spatial"), lambda model, x: model.decode(x).sample, _IMAGE),
    "UNet2DModel": (unet, lambda model, x: model(x, torch.tensor([3, 700])).sample, _IMAGE),
    "StyleGAN2 critic": (StyleGAN2Critic, lambda model, x: model(x), _IMAGE),
    "DCGAN": (dcgan, lambda model, z: model(z), (4, 8, 1, 1)),
    "ResNet": (ResNet, lambda model, x: model(x), (2, 3, 32, 32)),
    "pythae VAE": (lambda: pythae_models("VAE"), lambda model, x: model({"data": x})["loss"], (4, 1, 8, 8)),
    "pythae BetaVAE": (lambda: pythae_models("BetaVAE"), lambda model, x: model({"data": x})["loss"], (4, 1, 8, 8)),
    "pythae AE": (lambda: pythae_models("AE"), lambda model, x: model({"data": x})["loss"], (4, 1, 8, 8)),
}


def run(peer: str, accelerated: bool, training: bool) -> tuple[Tensor, Tensor]:
    """Output and first gradient of the peer compiled as one graph, and output of the same model as it is."""
    make, call, shape = PEERS[peer]
    torch.manual_seed(0)
    model = make().train(training)
    if accelerated:
        assert genmod.accelerate(model, allow=("exact", "critic")).swaps
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: call(model, x), fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(training):
        torch.manual_seed(2)
        found = compiled(x)
    if training:
        found.square().sum().backward()
    with torch.no_grad():
        torch.manual_seed(2)
        expected = call(model, x)
    return found.detach(), expected


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("peer", PEERS)
def test_one_graph(peer: str, training: bool):
    close(*run(peer, accelerated=True, training=training), 1e-3)
