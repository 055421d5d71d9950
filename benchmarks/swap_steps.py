"""Stock models and what `genmod.accelerate` makes of them: nothing else is changed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genmod
from benchmarks import critic_steps, decoder_steps
from benchmarks.steps import Contenders, Step
from genmod import penalties


def _decoder(device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The decoder of diffusers' AutoencoderKL, a quarter of its width."""
    from diffusers.models.autoencoders.vae import Decoder

    widths = decoder_steps.WIDTHS
    stock = Decoder(4, 3, ("UpDecoderBlock2D",) * len(widths), widths, 2, 32)
    return stock.to(device, dtype)


def _accelerated(model: nn.Module, *allow: str) -> nn.Module:
    ours = copy.deepcopy(model)
    genmod.accelerate(ours, allow=("exact", *allow))
    return ours


def _decoding(device: torch.device, dtype: torch.dtype) -> Contenders:
    stock = _decoder(device, dtype).eval()
    ours = _accelerated(stock)
    z = torch.randn(1, 4, 32, 32, device=device, dtype=dtype)

    def forward(model: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.no_grad():
                return model(z)

        return run

    contenders = {"eager": forward(stock), "compile": forward(torch.compile(stock)), "genmod": forward(ours)}
    torch.testing.assert_close(contenders["genmod"](), contenders["eager"](), rtol=1e-3, atol=1e-4)
    return contenders


def _training(device: torch.device, dtype: torch.dtype) -> Contenders:
    stock = _decoder(device, dtype).train()
    ours = _accelerated(stock)
    z = torch.randn(1, 4, 32, 32, device=device, dtype=dtype)
    cotangent = torch.randn(1, 3, 256, 256, device=device, dtype=dtype)

    def step(model: nn.Module, call: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            for p in model.parameters():
                p.grad = None
            images = call(z)
            images.backward(cotangent)
            return images

        return run

    contenders = {
        "eager": step(stock, stock),
        "compile": step(stock, torch.compile(stock)),
        "genmod": step(ours, ours),
    }
    torch.testing.assert_close(contenders["genmod"](), contenders["eager"](), rtol=1e-3, atol=1e-4)
    return contenders


def _gan(batch: int, device: torch.device, dtype: torch.dtype) -> Contenders:
    """Non-saturating GAN with R1 on the real samples: one step of the critic and one of the generator."""
    generator = decoder_steps.dcgan64("transposed").to(device, dtype)
    critic = critic_steps.dcgan64().to(device, dtype)
    real = torch.randn(batch, 3, 64, 64, device=device, dtype=dtype)
    z = torch.randn(2, batch, 100, 1, 1, device=device, dtype=dtype)

    def step(
        generator: nn.Module, critic: nn.Module, critic_gradients: Callable[[nn.Module, Tensor, Tensor], None]
    ) -> Callable[[], None]:
        def run() -> None:
            for p in (*generator.parameters(), *critic.parameters()):
                p.grad = None
            with torch.no_grad():
                fake = generator(z[0])
            critic_gradients(critic, real, fake)
            critic.requires_grad_(False)
            F.softplus(-critic(generator(z[1]))).mean().backward()
            critic.requires_grad_(True)

        return run

    def stock_gradients(critic: nn.Module, real: Tensor, fake: Tensor) -> None:
        critic_steps._r1_step(critic, lambda x: critic_steps._square_norms(critic, x), real, fake).backward()

    def our_gradients(critic: nn.Module, real: Tensor, fake: Tensor) -> None:
        penalties.critic_step(critic, real, fake, penalty="r1", gamma=critic_steps.GAMMA)

    ours = _accelerated(generator.train()), _accelerated(critic.train(), "critic")
    contenders = {
        "eager": step(generator, critic, stock_gradients),
        "genmod": step(*ours, our_gradients),
        "genmod:layers": step(*ours, stock_gradients),
    }
    for name in contenders:
        contenders[name]()
    for stock, mine in ((generator, ours[0]), (critic, ours[1])):
        for p, q in zip(stock.parameters(), mine.parameters(), strict=True):
            assert p.grad is not None and q.grad is not None
            assert (q.grad - p.grad).norm() <= 1e-2 * p.grad.norm()
    return contenders


STEPS = (
    Step("accelerate", "AutoencoderKL decoder, a quarter of the width, latent [1, 4, 32, 32], forward", _decoding),
    Step("accelerate", "AutoencoderKL decoder, the same, forward and backward", _training),
    Step("accelerate", "DCGAN-64 [32], generator and critic with R1", lambda device, dtype: _gan(32, device, dtype)),
)
