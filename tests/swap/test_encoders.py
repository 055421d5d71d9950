"""Encoders as torchvision and timm write them: residual blocks whose forward calls the modules one by one.

Gradients are compared in float64: in float32 a random network with batch norm in training is so badly conditioned that
rounding alone, stock PyTorch's too, moves them by percents.
"""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import genmod

from .common import check, close


class BasicBlock(nn.Module):
    """As torchvision's: one activation for two places, in place, and the sum in place too."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """A stem, stages of blocks, and a linear end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 16))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 32))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.maxpool(x)
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # torchvision beside another torch than its own raises RuntimeError
        pytest.skip(f"{name} cannot be imported: {error}")


def _torchvision(name: str, **options: Any) -> nn.Module:
    return getattr(_package("torchvision.models"), name)(num_classes=10, **options)


def _timm(name: str) -> nn.Module:
    return _package("timm").create_model(name, num_classes=10)


# A factory, and the runs that must be found, by pattern.
ENCODERS = {
    "resnet": (ResNet, {"conv_bn_act": 5, "conv_bn": 5}),
    "torchvision resnet18": (lambda: _torchvision("resnet18"), {"conv_bn_act": 9, "conv_bn": 11}),
    "torchvision mobilenet_v2": (lambda: _torchvision("mobilenet_v2", dropout=0.0), {"conv_bn": 52}),
    "timm resnet18": (lambda: _timm("resnet18"), {"conv_bn": 19}),
    "timm efficientnet_b0": (lambda: _timm("efficientnet_b0"), {"bias_act": 32}),
}


def _encoder(name: str) -> tuple[nn.Module, dict[str, int]]:
    torch.manual_seed(0)
    factory, expected = ENCODERS[name]
    model = factory()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics and slopes of a trained network, roughly
            for tensor, low, high in ((module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 2.0)):
                nn.init.uniform_(tensor, low, high)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model, expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name: str):
    model, expected = _encoder(name)
    x = torch.randn(2, 3, 64, 64)
    fast = copy.deepcopy(model).eval()
    found = [swap.pattern for swap in genmod.accelerate(fast)]
    for pattern, count in expected.items():
        assert found.count(pattern) == count, found
    with torch.no_grad():
        close(fast(x), model.eval()(x), 1e-4)
    check(model.double(), lambda m: m(x.double()), bound=1e-9)
