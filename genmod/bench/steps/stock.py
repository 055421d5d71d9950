"""A model of genmod rebuilt from torch's own modules and formulas, with the same weights: what there is without it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from genmod import nn as gnn
from genmod.nn.blocks import _ConvTranspose2d
from genmod.specs import specs


def stock(model: nn.Module) -> nn.Module:
    """A copy of the model with torch's modules in place of those of `genmod.nn`; parameters keep order, not names.

    What stays is the arithmetic between modules, which is torch's already.
    """
    model = copy.deepcopy(model)
    _replace(model)
    return model


def _replace(parent: nn.Module) -> None:
    for name, child in parent.named_children():
        made = next((make(child) for kind, make in _STOCK.items() if isinstance(child, kind)), None)
        if made is None:
            _replace(child)
        else:
            setattr(parent, name, made)


def _activation(name: str, slope: float) -> list[nn.Module]:
    made: dict[str, Callable[[], list[nn.Module]]] = {
        "identity": list,
        "relu": lambda: [nn.ReLU(True)],
        "silu": lambda: [nn.SiLU()],
        "leaky_relu": lambda: [nn.LeakyReLU(slope)],
    }
    return made[name]()


def _with_state(module: nn.Module, like: nn.Module) -> nn.Module:
    state = like.state_dict()
    for value in state.values():
        module = module.to(value.device, value.dtype) if value.is_floating_point() else module
    module.load_state_dict(state)
    return module.train(like.training)


def _group_norm(m: gnn.GroupNormAct) -> nn.Module:
    norm = _with_state(nn.GroupNorm(m.num_groups, m.num_channels, m.eps), m)
    return nn.Sequential(norm, *_activation(m.activation, m.negative_slope))


def _batch_norm(m: gnn.BatchNormAct) -> nn.Module:
    norm = _with_state(nn.BatchNorm2d(m.num_features, m.eps, m.momentum), m)
    return nn.Sequential(norm, *_activation(m.activation, m.negative_slope))


def _upsample(m: gnn.UpsampleConv2d) -> nn.Module:
    conv = _with_state(nn.Conv2d(m.in_channels, m.out_channels, 3, padding=1, bias=m.bias is not None), m)
    return nn.Sequential(nn.Upsample(scale_factor=2.0), conv, *_activation(m.activation, m.negative_slope))


def _bias_act(m: gnn.BiasAct) -> nn.Module:
    if m.bias is not None or m.gain != 1 or m.clamp is not None:
        raise NotImplementedError(f"no stock form of {m}")
    return nn.Sequential(*_activation(m.activation, m.negative_slope))


def _transposed(m: _ConvTranspose2d | gnn.ConvTranspose4x4) -> nn.Module:
    geometry: tuple[Any, ...] = (m.kernel_size, m.stride, m.padding, m.output_padding, m.groups, m.bias is not None)
    return _with_state(nn.ConvTranspose2d(m.in_channels, m.out_channels, *geometry), m)


def _convolution(m: gnn.CriticConv2d | gnn.Conv4x4) -> nn.Module:
    geometry: tuple[Any, ...] = (m.kernel_size, m.stride, m.padding, m.dilation, m.groups, m.bias is not None)
    conv = nn.Conv2d(m.in_channels, m.out_channels, *geometry)
    return _with_state(conv, m)


class Sampler(nn.Module):
    """Sampling and divergence in a dozen small operations."""

    def forward(self, params: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = params.chunk(2, dim=1)
        z = mean + torch.exp(0.5 * logvar) * noise
        return z, -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp()) / len(mean)


class Formula(nn.Module):
    """The plain PyTorch that a benchmark of the op compares with, as a module."""

    def __init__(self, op: str, **options: Any) -> None:
        super().__init__()
        self.function, self.options = specs()[op].eager, options

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors, **self.options)


_LOSSES = {"bernoulli": "bernoulli_nll", "gaussian": "gaussian_nll", "discretized_logistic": "discretized_logistic_nll"}


def _loss(m: gnn.ReconstructionLoss) -> nn.Module:
    return Formula(_LOSSES.get(m.kind, m.kind), reduction=m.reduction, **m.options)


_STOCK: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    gnn.GroupNormAct: _group_norm,
    gnn.BatchNormAct: _batch_norm,
    gnn.UpsampleConv2d: _upsample,
    gnn.BiasAct: _bias_act,
    _ConvTranspose2d: _transposed,
    gnn.ConvTranspose4x4: _transposed,
    gnn.Conv4x4: _convolution,
    gnn.CriticConv2d: _convolution,
    gnn.CriticLeakyReLU: lambda m: nn.LeakyReLU(m.negative_slope),
    gnn.GaussianSampler: lambda m: Sampler(),
    gnn.ReconstructionLoss: _loss,
    gnn.LogisticMixture: lambda m: Formula("logistic_mixture_nll", reduction=m.reduction, bins=m.bins),
    gnn.TotalCorrelation: lambda m: Formula("total_correlation", dataset_size=m.dataset_size, estimator=m.estimator),
    gnn.MMD: lambda m: Formula("mmd", kernel=m.kernel, scales=m.scales, unbiased=m.unbiased),
    gnn.DIP: lambda m: Formula("dip", kind=m.kind, lambda_od=m.lambda_od, lambda_d=m.lambda_d),
}
