"""diffusers' models, with random weights and few channels."""

from __future__ import annotations

import copy
import pickle
import time
from typing import Any

import pytest
import torch

import genmod

from .common import check, close

diffusers = pytest.importorskip("diffusers")

_KL: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "sample_size": 32,
}


def kl(**options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(**{**_KL, **options})


# Of Stable Diffusion, SDXL and FLUX.1, but for width and depth.
SHAPES = {
    "sd": {"latent_channels": 4, "scaling_factor": 0.18215},
    "sdxl": {"latent_channels": 4, "scaling_factor": 0.13025, "layers_per_block": 2, "force_upcast": True},
    "flux1": {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1159},
}


def reconstruct(model: Any, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(1)
    posterior = model.encode(x).latent_dist
    return model.decode(posterior.sample()).sample + posterior.kl().reshape(-1, 1, 1, 1) / 1000


@pytest.mark.parametrize("shape", SHAPES)
def test_autoencoder_kl(shape: str):
    x = torch.randn(2, 3, 32, 32)
    report = check(kl(**SHAPES[shape]), lambda model: reconstruct(model, x))
    found = {swap.pattern for swap in report}
    blocks = {"diffusers_resnet", "diffusers_upsample", "diffusers_attention"}
    assert found >= blocks | {"diffusers_decoder", "diffusers_encoder", "diffusers_posterior"}
    # Their strided convolutions, and what pays in critics only.
    assert all("critic" in entry.why or entry.what == "Downsample2D" for entry in report.left_alone)


def test_autoencoder_kl_flux2():
    if not hasattr(diffusers, "AutoencoderKLFlux2"):
        pytest.skip("this diffusers has no FLUX.2")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLFlux2(**_KL, latent_channels=8)
    x = torch.randn(2, 3, 32, 32)
    assert "diffusers_posterior" in {swap.pattern for swap in check(model, lambda m: reconstruct(m, x))}


@pytest.mark.parametrize("option", ["tiling", "slicing"])
def test_tiling_and_slicing(option: str):
    stock = kl().eval()
    ours = copy.deepcopy(stock)
    genmod.accelerate(ours)
    x = torch.randn(2, 3, 48, 48)
    for model in (stock, ours):
        getattr(model, f"enable_{option}")()
    with torch.no_grad():
        close(reconstruct(ours, x), reconstruct(stock, x))


def test_posterior_has_the_interface_and_the_noise():
    stock = kl().eval()
    ours = copy.deepcopy(stock)
    genmod.accelerate(ours)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs, mine = stock.encode(x).latent_dist, ours.encode(x, return_dict=False)[0]
    assert isinstance(mine, type(theirs))
    for name in ("mean", "logvar", "std", "var"):
        close(getattr(mine, name), getattr(theirs, name), what=name)
    samples = [p.sample(torch.Generator().manual_seed(5)) for p in (mine, theirs)]
    close(*samples)
    assert mine.kl(theirs).abs().max() < 1e-4, "to itself"
    close(mine.nll(samples[1]), theirs.nll(samples[1]))
    close(mine.mode(), theirs.mode())


def test_unet_2d():
    torch.manual_seed(0)
    for scale_shift in ("default", "scale_shift"):
        model = diffusers.UNet2DModel(
            sample_size=16,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            resnet_time_scale_shift=scale_shift,
        )
        x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
        report = check(model, lambda m, x=x, t=t: m(x, t).sample)
        assert any("8 heads" in entry.why for entry in report.left_alone)


def test_autoencoder_tiny():
    torch.manual_seed(0)
    few = {f"{side}_block_out_channels": (16, 16) for side in ("encoder", "decoder")}
    model = diffusers.AutoencoderTiny(**few, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    x = torch.rand(2, 3, 32, 32)
    report = check(model, lambda m: m(x).sample)
    assert {"upsample_conv", "bias_act"} <= {swap.pattern for swap in report}


@pytest.mark.parametrize("norm_type", ["group", "spatial"])
def test_vq_model(norm_type: str):
    torch.manual_seed(0)
    model = diffusers.VQModel(**_KL, latent_channels=3, num_vq_embeddings=16, norm_type=norm_type)
    z = torch.randn(2, 3, 16, 16)
    report = check(model, lambda m: m.decode(z).sample + m.encoder(m.decode(z).sample).mean())
    assert any("SpatialNorm" in entry.why for entry in report.left_alone) == (norm_type == "spatial")


def test_configuration_and_pickle_keep_the_name(tmp_path: Any):
    model = kl()
    genmod.accelerate(model)
    model.save_pretrained(tmp_path)
    assert type(diffusers.AutoencoderKL.from_pretrained(tmp_path)) is diffusers.AutoencoderKL
    other = pickle.loads(pickle.dumps(model.decoder))
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(other(z), model.decoder(z))


def test_gradient_checkpointing():
    stock = kl().train()
    stock.enable_gradient_checkpointing()
    x = torch.randn(1, 3, 32, 32)
    with pytest.warns(UserWarning, match="checkpointed"):
        check(stock, lambda m: reconstruct(m, x))


def test_another_processor_takes_its_own_path():
    from diffusers.models.attention_processor import AttnProcessor

    stock = kl().eval()
    ours = copy.deepcopy(stock)
    genmod.accelerate(ours)
    for model in (stock, ours):
        model.set_attn_processor(AttnProcessor())
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad(), pytest.warns(UserWarning, match="AttnProcessor"):
        close(reconstruct(ours, x), reconstruct(stock, x))


def test_fifty_million_parameters(record_property: Any):
    """How long the swap takes is written down, not judged: 0.06 s of CPU time when it was measured, of the second."""
    with torch.device("meta"):  # matching does not look at values
        model = kl(block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
                   up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2)  # fmt: skip
    model.decoder.to_empty(device="cpu")
    before = {name: p.data_ptr() for name, p in model.decoder.named_parameters()}
    assert sum(p.numel() for p in model.decoder.parameters()) > 45e6
    start = time.perf_counter()
    report = genmod.accelerate(model.decoder)
    record_property("seconds", time.perf_counter() - start)
    assert len(report) > 15
    # No weight was copied, which is what keeps the swap fast at any size.
    assert {name: p.data_ptr() for name, p in model.decoder.named_parameters()} == before
