"""An encoder reused as a classifier: what is frozen stays as it is, and what is not is trained."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from genmod.models import transfer
from genmod.models.networks import ConvEncoder


def encoder(norm: str = "batch") -> ConvEncoder:
    torch.manual_seed(0)
    return ConvEncoder(8, 1, 4, 3, norm=norm)


def trained(classifier: nn.Module) -> set[str]:
    """The names of the entries of the state_dict that a few steps of training change."""
    before = copy.deepcopy(classifier.state_dict())
    optimizer = torch.optim.SGD([p for p in classifier.parameters() if p.requires_grad], 0.5)
    classifier.train()
    for _ in range(2):
        optimizer.zero_grad()
        x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        nn.functional.cross_entropy(classifier(x), torch.arange(16) % 3).backward()
        optimizer.step()
    return {name for name, value in classifier.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    ("freeze", "still"), [(False, ()), (True, ("encoder.",)), ("features", ("encoder.stages.",)), (0, ())]
)
def test_what_is_frozen_does_not_change(freeze, still):
    classifier = transfer(encoder(), 3, freeze=freeze)
    changed = trained(classifier)
    assert {"head.weight", "head.bias"} <= changed
    assert not any(name.startswith(prefix) for name in changed for prefix in still)
    if not still:
        assert changed == set(classifier.state_dict())


def test_the_first_stages_alone():
    changed = trained(transfer(encoder(), 3, freeze=2))
    assert {name.split(".")[2] for name in changed if name.startswith("encoder.stages")} == {"2"}


def test_frozen_parts_stay_in_evaluation_mode():
    classifier = transfer(encoder(), 3, freeze=1).train()
    stages = classifier.encoder.stages
    assert classifier.training and not stages[0].training and stages[1].training
    assert not classifier.eval().head.training


def test_the_encoder_given_is_left_as_it_is():
    given = encoder()
    before = copy.deepcopy(given.state_dict())
    trained(transfer(given, 3))
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in given.parameters())


def test_state_dict_and_copies():
    classifier = transfer(encoder(), 3, freeze=True)
    again = transfer(encoder(), 3, freeze=True)
    again.load_state_dict(classifier.state_dict())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(again(x), classifier(x)) and classifier(x).shape == (2, 3)
    duplicate = copy.deepcopy(classifier)
    assert not duplicate.train().encoder.training and duplicate.encoder is not classifier.encoder
    assert {name.split(".")[0] for name in classifier.state_dict()} == {"encoder", "head"}


def test_gradients_reach_the_input_through_what_is_frozen():
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    transfer(encoder("group"), 3, freeze=True)(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_dtype_follows_the_encoder():
    assert transfer(encoder("group").double(), 2)(torch.rand(1, 1, 8, 8).double()).dtype == torch.float64


def test_any_module_with_its_number_of_features():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    assert transfer(flat, 4, num_features=5, freeze=True)(torch.rand(2, 1, 8, 8)).shape == (2, 4)
    with pytest.raises(TypeError, match="num_features: got None"):
        transfer(flat, 4)
    with pytest.raises(ValueError, match="has no `stages`"):
        transfer(flat, 4, num_features=5, freeze="features")


def test_bad_arguments():
    with pytest.raises(TypeError, match="encoder: got function"):
        transfer(encoder, 3)
    with pytest.raises(TypeError, match=r"num_classes: got 3\.0"):
        transfer(encoder(), 3.0)
    with pytest.raises(ValueError, match="num_classes: got 1"):
        transfer(encoder(), 1)
    with pytest.raises(TypeError, match="freeze: got 'all'"):
        transfer(encoder(), 3, freeze="all")
    with pytest.raises(ValueError, match="freeze: got 4, expected 0 to 3"):
        transfer(encoder(), 3, freeze=4)
