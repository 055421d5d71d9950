"""Critics of many shapes, small enough for float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from genmod import nn as gnn


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1, groups=2)
        self.b = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.b(F.leaky_relu(self.a(x), 0.2))) * 0.5**0.5


class EqualizedConv2d(nn.Module):
    """Weight and bias scaled at run time, as progressive GANs do."""

    def __init__(self, inputs: int, outputs: int, size: int, **options: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.randn(outputs))
        self.scale, self.options = (inputs * size * size) ** -0.5, options

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias * 0.1, **self.options)


class Branches(nn.Module):
    """Two branches joined by channels, a learned gain and offset, pooling, padding, resampling, a mean at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 5, padding=2, stride=1)
        self.gain, self.offset = nn.Parameter(torch.rand(8, 1, 1) + 0.5), nn.Parameter(torch.randn(1, 8, 1, 1))
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((F.relu(self.left(x)), self.right(x)), dim=1)
        x = F.leaky_relu(self.gain * x + self.offset - 0.1, 0.3, True)
        x = F.avg_pool2d(F.pad(x, (1, 0, 0, 1)), 3, 2)
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = x - x[:, :, :1, :1] / 3
        x = 1.0 - x.mean(dim=(2, 3))
        return self.head(x).squeeze(1)


class TwoHeads(nn.Module):
    """Computes what it does not return."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.other, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Linear(144, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.body(x))
        F.relu(self.other(h)).sum((1, 2, 3))
        output = self.head(h.flatten(1))
        F.relu(output * 2)
        return output


class Nested(nn.Module):
    """Python control flow, matrix products, reshapes, in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1)])
        self.w, self.v = nn.Parameter(torch.randn(96, 7)), nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if x.shape[-1] > 1 and i < 2:
                x = F.relu(x, inplace=True)
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = (x @ self.w).add_(self.v)
        return x.view(x.size(0), 7, 1).transpose(1, 2).sum(2)


def dcgan(
    layers: type[nn.Conv2d] = nn.Conv2d, activation: Callable[[], nn.Module] = lambda: nn.LeakyReLU(0.2)
) -> nn.Module:
    return nn.Sequential(
        layers(3, 6, 4, 2, 1), activation(), layers(6, 8, 4, 2, 1), activation(), layers(8, 1, 2), nn.Flatten(0)
    )


def r3gan() -> nn.Module:
    """Residual blocks with grouped convolutions and interpolated downsampling."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), Residual(8), gnn.BlurDownsample(), nn.Conv2d(8, 12, 1, bias=False), Residual(12),
        nn.AvgPool2d(2), nn.Conv2d(12, 12, 2, groups=12), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(12, 1),
    )  # fmt: skip


def equalized() -> nn.Module:
    return nn.Sequential(
        EqualizedConv2d(3, 5, 3, padding=1), nn.LeakyReLU(0.2), gnn.BlurDownsample((1.0, 2.0, 1.0)),
        EqualizedConv2d(5, 6, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(24, 1),
    )  # fmt: skip


def spectral() -> nn.Module:
    norm = parametrizations.spectral_norm
    return nn.Sequential(norm(nn.Conv2d(3, 5, 3, 2)), nn.ReLU(True), nn.Flatten(), norm(nn.Linear(45, 1)))


def spectral_hooks() -> nn.Module:
    norm = nn.utils.spectral_norm
    return nn.Sequential(norm(nn.Conv2d(3, 5, 3, 2)), nn.ReLU(), nn.Flatten(), norm(nn.Linear(45, 1)))


def weight_norm() -> nn.Module:
    norm = parametrizations.weight_norm
    return nn.Sequential(norm(nn.Conv2d(3, 5, 3, 2)), nn.LeakyReLU(), nn.Flatten(), norm(nn.Linear(45, 1)))


def frozen_batch_norm() -> nn.Module:
    critic = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(180, 1))
    critic[1].running_mean.normal_()
    critic[1].running_var.uniform_(0.5, 2)
    return critic.eval()


def native() -> nn.Module:
    return dcgan(gnn.CriticConv2d, lambda: gnn.CriticLeakyReLU(0.2))


def frozen_first_layer() -> nn.Module:
    critic = dcgan()
    critic[0].requires_grad_(False)
    return critic


PIECEWISE_LINEAR: dict[str, Callable[[], nn.Module]] = {
    "dcgan": dcgan,
    "critic layers": native,
    "r3gan": r3gan,
    "equalized": equalized,
    "spectral norm": spectral,
    "spectral norm by hooks": spectral_hooks,
    "weight norm": weight_norm,
    "branches": Branches,
    "nested": Nested,
    "two heads": TwoHeads,
    "frozen batch norm": frozen_batch_norm,
    "frozen first layer": frozen_first_layer,
}


class StyleGAN2(nn.Module):
    """Residual, blurred, with minibatch standard deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb = gnn.CriticConv2d(3, 6, 1)
        self.conv = gnn.CriticConv2d(6, 6, 3, padding=1)
        self.down = nn.Sequential(gnn.BlurDownsample(), gnn.CriticConv2d(6, 8, 3, padding=1))
        self.skip = nn.Sequential(gnn.BlurDownsample(), gnn.CriticConv2d(6, 8, 1, bias=False))
        self.std = gnn.MinibatchStdDev(2)
        self.last = gnn.CriticConv2d(9, 8, 3, padding=1)
        self.act = gnn.CriticLeakyReLU(0.2)
        self.head = gnn.CriticLinear(128, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.rgb(x))
        x = (self.act(self.down(self.act(self.conv(x)))) + self.skip(x)) * 0.5**0.5
        return self.head(self.act(self.last(self.std(x))).flatten(1))


def smooth() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, 2), nn.SiLU(), nn.Conv2d(5, 5, 3), nn.GELU(), nn.Flatten(), nn.Linear(5, 1), nn.Softplus()
    )


def normalised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.GroupNorm(2, 6), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(54, 1))


OTHERS: dict[str, Callable[[], nn.Module]] = {"smooth": smooth, "group norm": normalised, "stylegan2": StyleGAN2}
