"""`nn.Decoder`: AutoencoderKL's against diffusers, DCGAN's against stock modules."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch

from genmod.nn import Decoder, DecoderConfig

WIDTHS = (16, 32)
FORMS = pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
INSIDE = pytest.mark.parametrize("inside", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
UPSAMPLE = pytest.mark.parametrize("upsample", ["transposed", "nearest"])


def randomize(module):
    """Affine parameters of a fresh norm are ones and zeros, which hide mistakes."""
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return module


def kl(attention=True, **options):
    return Decoder(
        DecoderConfig.autoencoder_kl(WIDTHS, layers_per_block=1, num_groups=8, attention=attention), **options
    )


def stock_kl(attention=True):
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")
    return vae.Decoder(
        in_channels=4,
        out_channels=3,
        up_block_types=("UpDecoderBlock2D",) * len(WIDTHS),
        block_out_channels=WIDTHS,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=attention,
    )


def dcgan(upsample="transposed", **options):
    return Decoder(DecoderConfig.dcgan(16, latent_channels=6, width=4, upsample=upsample), **options)


def stock_dcgan(upsample):
    def doubling(inputs, outputs):
        if upsample == "transposed":
            return [torch.nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)]
        return [torch.nn.Upsample(scale_factor=2), torch.nn.Conv2d(inputs, outputs, 3, padding=1, bias=outputs == 3)]

    def norm(channels):
        return [torch.nn.BatchNorm2d(channels), torch.nn.ReLU()]

    first = torch.nn.ConvTranspose2d(6, 8, 4, 1, 0, bias=False)
    return torch.nn.Sequential(first, *norm(8), *doubling(8, 4), *norm(4), *doubling(4, 3), torch.nn.Tanh())


def latent(*shape, form=torch.contiguous_format, dtype=torch.float64):
    z = torch.randn(shape, dtype=dtype)
    return z.contiguous(memory_format=form) if z.dim() == 4 else z


def close(mine, theirs, dtype):
    """The same sums in another order."""
    scale = theirs.abs().max().item()
    torch.testing.assert_close(mine, theirs, rtol=0, atol=scale * (1e-11 if dtype == torch.float64 else 1e-4))


# AutoencoderKL.


@FORMS
@INSIDE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autoencoder_kl_is_that_of_diffusers(form, inside, dtype):
    torch.manual_seed(0)
    stock, ours = randomize(stock_kl()).to(dtype), kl(memory_format=inside, dtype=dtype)
    ours.load_state_dict(stock.state_dict(), strict=True)
    z = latent(2, 4, 5, 6, form=form, dtype=dtype).requires_grad_()
    mine, theirs = ours(z), stock(z)
    close(mine, theirs, dtype)
    g = torch.randn_like(theirs)
    names = [name for name, _ in stock.named_parameters()]
    expected = dict(zip(names, torch.autograd.grad(theirs, [*stock.parameters(), z], g)[:-1]))
    found = dict(zip(names, torch.autograd.grad(mine, [*(ours.get_parameter(n) for n in names)], g, retain_graph=True)))
    close(torch.autograd.grad(mine, z, g)[0], torch.autograd.grad(stock(z), z, g)[0], dtype)
    # Biases of which the exact gradient is zero: of keys (a softmax does not see them).
    for name in (n for n in names if n.endswith("to_k.bias")):
        assert found[name].abs().max() <= 1e-4 * expected[name.replace("to_k", "to_q")].abs().max()
        del found[name]
    for name in found:
        close(found[name], expected[name], dtype)
    with torch.no_grad():
        close(ours(z), theirs, dtype)


@pytest.mark.parametrize("attention", [True, False])
def test_state_dicts_go_both_ways(attention):
    ours, stock = randomize(kl(attention)), stock_kl(attention)
    stock.load_state_dict(ours.state_dict(), strict=True)
    z = latent(1, 4, 3, 3, dtype=torch.float32)
    close(ours(z), stock(z), torch.float32)


def test_the_default_is_stable_diffusions():
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")
    with torch.device("meta"):
        stock = vae.Decoder(4, 3, ("UpDecoderBlock2D",) * 4, (128, 256, 512, 512), 2)
        ours = Decoder(DecoderConfig.autoencoder_kl())
    shapes = {name: t.shape for name, t in stock.state_dict().items()}
    assert {name: t.shape for name, t in ours.state_dict().items()} == shapes


# DCGAN.


@UPSAMPLE
@INSIDE
@pytest.mark.parametrize("training", [True, False])
def test_dcgan_is_stock_modules(upsample, inside, training):
    torch.manual_seed(0)
    stock = randomize(stock_dcgan(upsample)).double().train(training)
    ours = dcgan(upsample, memory_format=inside, dtype=torch.float64).train(training)
    ours.load_state_dict(dict(zip(ours.state_dict(), stock.state_dict().values(), strict=True)))
    z = latent(3, 6, 1, 1).requires_grad_()
    mine, theirs = ours(z), stock(z)
    close(mine, theirs, torch.float64)
    g = torch.randn_like(theirs)
    found = torch.autograd.grad(mine, [z, *ours.parameters()], g)
    for f, e in zip(found, torch.autograd.grad(theirs, [z, *stock.parameters()], g), strict=True):
        close(f, e, torch.float64)
    for mine, theirs in zip(ours.buffers(), stock.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


@UPSAMPLE
def test_dcgan_takes_a_flat_latent(upsample):
    ours = dcgan(upsample).eval()
    z = latent(3, 6, dtype=torch.float32)
    assert torch.equal(ours(z), ours(z[:, :, None, None]))
    assert ours(z).shape == (3, 3, 16, 16)
    assert DecoderConfig.dcgan(128).block_channels == (64, 128, 256, 512, 1024)


# Both.

MODELS = {
    "autoencoder_kl": (kl, (2, 4, 4, 3)),
    "dcgan": (dcgan, (2, 6)),
    "dcgan, nearest": (lambda **options: dcgan("nearest", **options), (2, 6, 1, 1)),
}
EACH = pytest.mark.parametrize(("make", "shape"), MODELS.values(), ids=MODELS.keys())


@EACH
@INSIDE
def test_the_callers_memory_format_is_kept(make, shape, inside):
    model = make(memory_format=inside)
    assert model(latent(*shape, dtype=torch.float32)).is_contiguous()
    if shape[2:] != () and shape[2] > 1:
        z = latent(*shape, form=torch.channels_last, dtype=torch.float32)
        assert model(z).is_contiguous(memory_format=torch.channels_last)
        assert z.grad is None


@EACH
def test_compiles_in_one_piece(make, shape):
    model = randomize(make()).eval()
    z = latent(*shape, dtype=torch.float32)
    close(torch.compile(model, backend="aot_eager", fullgraph=True)(z), model(z), torch.float32)


@EACH
def test_copies_and_pickles(make, shape):
    model = randomize(make()).eval()
    z = latent(*shape, dtype=torch.float32)
    with torch.no_grad():
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(z), model(z))
            assert twin.config == model.config
            assert twin.memory_format is model.memory_format


@EACH
def test_penalties_can_differentiate_it_twice(make, shape):
    """A path-length penalty (StyleGAN2) differentiates a gradient with respect to the latent."""
    model = randomize(make(dtype=torch.float64)).eval()
    z, g = latent(*shape).requires_grad_(), None
    weight = model.conv_in.get_parameter("weight" if isinstance(model.conv_in, torch.nn.Conv2d) else "conv.weight")
    step = 1e-5 * torch.randn_like(weight)

    def penalty():
        nonlocal g
        image = model(z)
        g = torch.randn_like(image) if g is None else g
        return torch.autograd.grad(image, z, g, create_graph=True)[0].square().sum()

    slope = (torch.autograd.grad(penalty(), weight)[0] * step).sum()
    values = []
    for sign in (1, -1):
        weight.data += sign * step
        values.append(penalty().item())
        weight.data -= sign * step
    torch.testing.assert_close(slope.item(), (values[0] - values[1]) / 2, rtol=1e-5, atol=0)


@EACH
def test_empty_batch(make, shape):
    z = torch.zeros(0, *shape[1:])
    assert make().eval()(z).shape[0] == 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DecoderConfig.dcgan(48), ValueError, "size: got 48, expected a power of two, at least 8"),
        (lambda: DecoderConfig.dcgan(4), ValueError, "size: got 4"),
        (lambda: DecoderConfig.dcgan(64.0), TypeError, "size: got float"),
        (lambda: DecoderConfig.dcgan(width=0), ValueError, "width: got 0"),
        (lambda: DecoderConfig.dcgan(upsample="bilinear"), ValueError, "upsample: got 'bilinear'"),
        (lambda: DecoderConfig.autoencoder_kl((48, 64)), ValueError, "groups: got 32.*block_channels=48"),
        (lambda: DecoderConfig.autoencoder_kl(()), ValueError, "at least one stage"),
        (lambda: DecoderConfig.autoencoder_kl(latent_channels=0), ValueError, "latent_channels: got 0"),
        (lambda: DecoderConfig(4, 3, [32], "residual"), TypeError, "block_channels: got list"),
        (lambda: DecoderConfig(4, 3, (32,), "dense"), ValueError, "blocks: got 'dense'"),
        (lambda: DecoderConfig(4, 3, (32,), "residual", "transposed"), ValueError, "upsample: got 'transposed'"),
        (lambda: kl(memory_format=torch.preserve_format), ValueError, "memory_format: got torch.preserve_format"),
        (lambda: kl()(torch.zeros(1, 3, 4, 4)), ValueError, r"z: got shape \(1, 3, 4, 4\), expected \[N, 4, H, W\]"),
        (lambda: kl()(torch.zeros(1, 4)), ValueError, "z: got shape"),
        (lambda: dcgan()(torch.zeros(1, 6, 2, 1)), ValueError, r"expected \[N, 6\] or \[N, 6, 1, 1\]"),
    ],
)
def test_bad_configs_and_inputs(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_config_is_a_value():
    config = DecoderConfig.dcgan()
    assert config == DecoderConfig.dcgan() and hash(config) == hash(DecoderConfig.dcgan())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_groups = 4


def test_attention_by_rows(monkeypatch):
    """The path of wide heads on a GPU, with products in float32 as the CPU has them."""
    from genmod.nn import attention

    scores = lambda nothing, q, keys: q.shape[-1] ** -0.5 * q @ keys  # noqa: E731
    monkeypatch.setattr(attention, "_scores", scores)
    monkeypatch.setattr(attention, "_PART", 40)
    for batch, tokens in ((1, 7), (2, 10), (1, 1)):
        q, k, v = torch.randn(3, batch, tokens, 6)
        torch.testing.assert_close(attention._by_rows(q, k, v), attention._fused(q, k, v))


@pytest.mark.gpu
def test_attention_of_wide_heads():
    from genmod.nn import attention

    q, k, v = torch.randn(3, 2, 1500, 320, device="cuda").bfloat16()
    exact = attention._fused(q.double(), k.double(), v.double())
    with torch.no_grad():
        found, fused = attention.attention(q, k, v), attention._fused(q, k, v)
    error = [(t.double() - exact).norm() / exact.norm() for t in (found, fused)]
    assert error[0] <= 2 * error[1]
