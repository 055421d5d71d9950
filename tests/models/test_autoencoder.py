"""The autoencoder, against its formula in float64; and what all families share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from genmod.models import Autoencoder, AutoencoderConfig

from .small import SMALL, check_draws, check_phases, images, train


def make(**options: Any) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(**{**SMALL, **options}))


@pytest.mark.parametrize("loss", ["bernoulli", "mse", "l1"])
@pytest.mark.parametrize("objective", ["plain", "denoising"])
def test_loss_is_its_formula(objective: str, loss: str) -> None:
    model, x = make(objective=objective, loss=loss, noise=0.5).double(), images().double()
    draws = {name: tensor.double() for name, tensor in model.draw("model", 6, torch.Generator().manual_seed(0)).items()}
    seen = x + 0.5 * draws["noise"] if objective == "denoising" else x
    output = model.decoder(model.encode(seen))
    formula = {"bernoulli": F.binary_cross_entropy_with_logits, "mse": F.mse_loss, "l1": F.l1_loss}[loss]
    found = model.loss(x, draws=draws)
    torch.testing.assert_close(found.loss, formula(output, x, reduction="sum") / 6)
    assert found.parts.keys() == {"reconstruction"}
    assert torch.equal(found.parts["reconstruction"], found.loss)


@pytest.mark.parametrize("objective", ["plain", "denoising"])
def test_phases_and_draws(objective: str) -> None:
    model = make(objective=objective)
    check_draws(model)
    check_phases(model, images())


@pytest.mark.parametrize("objective", ["plain", "denoising"])
def test_overfits_a_batch(objective: str) -> None:
    model, x = make(objective=objective, width=16, latent_dim=8, noise=0.1, loss="mse"), images(8)
    first, last = train(model, x, 120)
    assert last < 0.3 * first
    assert (model.reconstruct(x) - x).square().mean() < 0.25 * x.var(0).mean()


@pytest.mark.parametrize("loss", ["bernoulli", "mse", "l1"])
def test_images_in_and_out(loss: str) -> None:
    model, x = make(loss=loss), images()
    assert model.image_shape == (1, 8, 8)
    assert model.latents(x).shape == (6, model.latent_dim)
    for made in (model.reconstruct(x), model.sample(5), model.decode(50 * torch.randn(4, 3))):
        assert made.shape[1:] == x.shape[1:]
        assert made.min() >= 0 and made.max() <= 1
    assert not model.reconstruct(x).requires_grad
    assert model.decode(model.latents(x)).requires_grad
    assert torch.equal(model(x).loss, model.loss(x).loss)


def test_prior_is_fitted_to_the_codes() -> None:
    model, x = make(), images(400)
    model.fit_prior(x)
    codes, drawn = model.latents(x), model.prior(20_000, torch.Generator().manual_seed(0))
    scale = codes.std(0).max().item()
    torch.testing.assert_close(drawn.mean(0), codes.mean(0), rtol=0, atol=0.05 * scale)
    torch.testing.assert_close(drawn.T.cov(), codes.T.cov(), rtol=0, atol=0.1 * scale**2)


def test_prior_of_a_single_image() -> None:
    model = make()
    model.fit_prior(images(1))
    assert model.sample(3).isfinite().all()


def test_samples_follow_the_generator() -> None:
    model = make()
    first, again, other = (model.sample(3, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bfloat16_autocast_and_channels_last() -> None:
    model, x = make(width=8), images()
    expected = model.loss(x).loss
    with torch.autocast("cpu", torch.bfloat16):
        low = model.backward("model", x, {})
    torch.testing.assert_close(low.loss, expected, rtol=0.02, atol=0)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model.loss(x.contiguous(memory_format=torch.channels_last)).loss, expected)


@pytest.mark.slow
def test_compile_of_encode_and_decode() -> None:
    model, x = make(), images()
    z = model.encode(x)
    encode, decode = (torch.compile(f, backend="aot_eager", fullgraph=True) for f in (model.encode, model.decode))
    torch.testing.assert_close((encode(x), decode(z)), (z, model.decode(z)))


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"image_size": 30}, ValueError, r"image_size: got 30, expected a multiple of 2\*\*stages = 4"),
        ({"latent_dim": 0}, ValueError, "latent_dim: got 0, expected a positive integer"),
        ({"width": 2.5}, TypeError, r"width: got 2\.5, expected a positive integer"),
        ({"channels": True}, TypeError, "channels: got True"),
        ({"objective": "sparse"}, ValueError, "objective: got 'sparse', expected one of 'plain', 'denoising'"),
        ({"loss": "huber"}, ValueError, "loss: got 'huber', expected one of"),
        ({"noise": -1.0}, ValueError, r"noise: got -1\.0, expected a finite number >= 0"),
        ({"noise": float("nan")}, ValueError, "noise: got nan"),
        ({"noise": "much"}, TypeError, "noise: got 'much'"),
    ],
)
def test_bad_config(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AutoencoderConfig(**{**SMALL, **wrong})


def test_bad_arguments() -> None:
    model = make(objective="denoising")
    with pytest.raises(ValueError, match=r"images: got shape \(2, 3, 8, 8\), expected \[B, 1, 8, 8\]"):
        model.loss(torch.rand(2, 3, 8, 8))
    with pytest.raises(TypeError, match=r"images: got dtype torch\.uint8, expected a floating-point tensor"):
        model.encode(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"z: got shape \(2, 4\), expected \[B, 3\]"):
        model.decode(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="phase: got 'critic', expected one of 'model'"):
        model.draw("critic", 2)
    with pytest.raises(ValueError, match="draws: got 5 rows of 'noise', expected one per image, 6"):
        model.loss(images(), draws=model.draw("model", 5))
