"""The networks: shapes, memory formats, and what a critic has to be."""

from __future__ import annotations

import pytest
import torch

from genmod.models.networks import NORMS, ConvDecoder, ConvEncoder, Critic, Generator
from genmod.penalties import value_and_input_gradient


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("size", "stages"), [(8, 2), (28, 2), (12, 1)])
def test_encoder_and_decoder_mirror_each_other(norm: str, size: int, stages: int) -> None:
    encoder, decoder = ConvEncoder(size, 2, 4, stages, norm=norm), ConvDecoder(size, 3, 5, 4, stages, norm=norm)
    x = torch.rand(3, 2, size, size)
    assert encoder.features(x).shape == (3, *encoder.feature_shape)
    assert encoder(x).shape == (3, encoder.num_features)
    assert torch.equal(encoder(x), encoder.features(x).flatten(1)) or norm == "batch"
    assert decoder(torch.randn(3, 5)).shape == (3, 3, size, size)
    assert decoder.bottom == encoder.feature_shape


def test_channels_last_gives_the_same() -> None:
    torch.manual_seed(0)
    encoder, decoder = ConvEncoder(8, 3, 8, 2), ConvDecoder(8, 3, 4, 8, 2)
    x, z = torch.rand(2, 3, 8, 8), torch.randn(2, 4)
    expected = encoder(x), decoder(z)
    encoder.to(memory_format=torch.channels_last), decoder.to(memory_format=torch.channels_last)
    torch.testing.assert_close((encoder(x.contiguous(memory_format=torch.channels_last)), decoder(z)), expected)


def test_critic_takes_the_shared_gradient() -> None:
    torch.manual_seed(0)
    critic, x = Critic(8, 3, 8, 2), torch.rand(4, 3, 8, 8)
    values, gradients = value_and_input_gradient(critic, x, engine="shared")  # raises if it were not piecewise linear
    assert values.shape == (4,)
    torch.testing.assert_close(value_and_input_gradient(critic, x, engine="autograd"), (values, gradients))


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_generator(norm: str) -> None:
    torch.manual_seed(0)
    images = Generator(16, 3, 5, 8, 2, norm=norm)(torch.randn(4, 5))
    assert images.shape == (4, 3, 16, 16)
    assert images.abs().max() < 1
    assert images.std(0).mean() > 0.01  # latents make a difference from the beginning


@pytest.mark.parametrize("make", [lambda n: ConvEncoder(8, 1, norm=n), lambda n: ConvDecoder(8, 1, 2, norm=n)])
def test_unknown_norm(make: object) -> None:
    with pytest.raises(ValueError, match="norm: got 'layer', expected one of 'group', 'batch', 'none'"):
        make("layer")


@pytest.mark.parametrize("make", [lambda: ConvEncoder(9, 1), lambda: Critic(20, 1), lambda: Generator(12, 1, 2)])
def test_sizes_that_cannot_be_halved(make: object) -> None:
    with pytest.raises(ValueError, match=r"image_size: got \d+, expected a multiple of 2\*\*stages = 8"):
        make()
