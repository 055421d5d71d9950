"""The orthogonality penalty against Jacobians from reverse mode, and what training with it does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genmod.latent import jacobian_columns, orthogonality_penalty
from genmod.nn import GroupNormAct, UpsampleBlock

B, D = 3, 4


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 10), nn.Unflatten(1, (2, 5))).double()


def fused() -> nn.Module:
    """A decoder of fused modules."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(D, 16), nn.Unflatten(1, (4, 2, 2)), GroupNormAct(2, 4, activation="silu"), UpsampleBlock(4, 2)
    ).double()


def codes(seed: int = 1) -> torch.Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reverse_mode_columns(decode, z):
    """[B, D, P] by autograd.functional.jacobian, one sample at a time."""
    rows = [torch.autograd.functional.jacobian(lambda one: decode(one[None])[0].flatten(), sample) for sample in z]
    return torch.stack(rows).mT


def penalty_of(columns: torch.Tensor, normalize: bool) -> torch.Tensor:
    """The definition, pair by pair."""
    total = torch.zeros((), dtype=columns.dtype)
    for sample in columns:
        for i in range(D):
            for j in range(D):
                if i != j:
                    a, b = sample[i], sample[j]
                    product = a @ b
                    total = total + ((product / (a.norm() * b.norm())) ** 2 / (D * (D - 1)) if normalize else product**2)
    return total / len(columns)


@pytest.mark.parametrize("decoder", [mlp, fused])
def test_columns_are_those_of_reverse_mode(decoder):
    decode, z = decoder(), codes()
    found = jacobian_columns(decode, z)
    assert found.shape[:2] == (B, D)
    torch.testing.assert_close(found.flatten(2), reverse_mode_columns(decode, z))


@pytest.mark.parametrize("decoder", [mlp, fused])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_exact_penalty_is_the_definition(decoder, normalize):
    decode, z = decoder(), codes()
    expected = penalty_of(reverse_mode_columns(decode, z), normalize)
    torch.testing.assert_close(orthogonality_penalty(decode, z, normalize=normalize), expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_all_pairs_are_the_exact_penalty(normalize):
    decode, z = mlp(), codes()
    exact = orthogonality_penalty(decode, z, normalize=normalize)
    pairs = orthogonality_penalty(decode, z, estimator="pairs", normalize=normalize, probes=D * (D - 1) // 2)
    torch.testing.assert_close(pairs, exact)


@pytest.mark.parametrize(
    ("estimator", "normalize", "probes"), [("pairs", True, 1), ("pairs", False, 1), ("hutchinson", False, 2)]
)
def test_estimators_are_unbiased(estimator, normalize, probes):
    """The mean over many draws, within four standard errors."""
    decode, z = mlp(), codes()
    exact = orthogonality_penalty(decode, z, normalize=normalize)
    many = z[:1].repeat(4000, 1)
    alone = orthogonality_penalty(decode, z[:1], normalize=normalize)
    draws = torch.Generator().manual_seed(0)
    halves = torch.stack(
        [
            orthogonality_penalty(
                decode, part, estimator=estimator, normalize=normalize, probes=probes, generator=draws
            )
            for part in many.split(200)
        ]
    )
    error = halves.std() / len(halves) ** 0.5
    assert abs(halves.mean() - alone) < 4 * error < 0.25 * alone
    assert exact > 0


@pytest.mark.parametrize("estimator", ["exact", "pairs", "hutchinson"])
def test_gradients(estimator):
    decode, z = mlp(), codes()[:2].requires_grad_()
    parameters = list(decode.parameters())

    def penalty(z, *_):
        return orthogonality_penalty(
            decode,
            z,
            estimator=estimator,
            normalize=estimator != "hutchinson",
            probes=2,
            generator=torch.Generator().manual_seed(0),
        )

    assert torch.autograd.gradcheck(penalty, (z, *parameters[:1]))


def test_gradients_reach_fused_decoders():
    decode, z = fused(), codes()
    orthogonality_penalty(decode, z).backward()
    reached = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in decode.parameters()]
    assert reached[0] and reached[-1]


def test_known_values():
    orthogonal = torch.linalg.qr(torch.randn(8, D, generator=torch.Generator().manual_seed(0)).double()).Q
    parallel = orthogonal[:, :1] * torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    silent = orthogonal * torch.tensor([1.0, 0.0, 0.0, 0.0])  # three latents that do nothing
    z = codes()
    for weight, expected in ((orthogonal, 0.0), (parallel, 1.0), (silent, 0.0)):
        found = orthogonality_penalty(lambda z, weight=weight: z @ weight.T, z)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_silent_latents_have_no_nan_gradients():
    layer = nn.Linear(D, 6).double()
    with torch.no_grad():
        layer.weight[:, 1:] = 0
    orthogonality_penalty(layer, codes()).backward()
    assert bool(layer.weight.grad.isfinite().all())


def test_scale_does_not_matter_when_normalised():
    decode, z = mlp(), codes()
    torch.testing.assert_close(orthogonality_penalty(lambda z: 1e3 * decode(z), z), orthogonality_penalty(decode, z))


def test_training_makes_the_columns_orthogonal():
    decode = mlp()
    optimizer = torch.optim.Adam(decode.parameters(), lr=0.02)
    draws = torch.Generator().manual_seed(0)
    before = orthogonality_penalty(decode, codes()).detach()
    for _ in range(60):
        optimizer.zero_grad()
        z = torch.randn(16, D, generator=draws, dtype=torch.float64)
        orthogonality_penalty(decode, z, estimator="pairs", probes=3, generator=draws).backward()
        optimizer.step()
    assert orthogonality_penalty(decode, codes()) < 0.3 * before


def test_half_precision_does_not_overflow():
    decode = nn.Linear(D, 64).to(torch.bfloat16)
    with torch.no_grad():
        decode.weight.mul_(1e10)
    found = orthogonality_penalty(decode, codes().bfloat16())
    assert found.dtype == torch.float32 and bool(found.isfinite())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "random"}, "estimator: got 'random'"),
        ({"estimator": "hutchinson", "probes": 2}, "normalize: got True"),
        ({"estimator": "hutchinson", "normalize": False, "probes": 1}, "probes: got 1"),
        ({"estimator": "pairs", "probes": 7}, "expected 1 to 6"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        orthogonality_penalty(mlp(), codes(), **options)


def test_bad_inputs():
    with pytest.raises(TypeError, match="decode: got int"):
        orthogonality_penalty(3, codes())
    with pytest.raises(TypeError, match="z: got dtype torch.int64"):
        orthogonality_penalty(mlp(), torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"z: got shape \(4,\)"):
        orthogonality_penalty(mlp(), torch.ones(4))
    with pytest.raises(ValueError, match="z: got 1 latent"):
        orthogonality_penalty(lambda z: z, torch.ones(2, 1))
