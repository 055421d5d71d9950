"""The convolutional LSTM against its formula, one step at a time, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from genmod.pretext import ConvLSTM


def layer(in_channels: int, hidden: int, **options: object) -> ConvLSTM:
    torch.manual_seed(0)
    module = ConvLSTM(in_channels, hidden, **options).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("size", [None, (5, 4)])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_formula(size, kernel_size):
    module = layer(2, 3, kernel_size=kernel_size, size=size)
    x = torch.randn(2, 4, 2, 5, 4, dtype=torch.float64)
    hidden = cell = torch.zeros(2, 3, 5, 4, dtype=torch.float64)
    wxi, wxf, wxc, wxo = module.from_input.weight.chunk(4)
    whi, whf, whc, who = module.from_hidden.weight.chunk(4)
    bi, bf, bc, bo = module.from_hidden.bias.chunk(4)
    wci, wcf, wco = module.peephole if size else torch.zeros(3, 1, 1, 1, dtype=torch.float64)

    def conv(x, weight, bias=None):
        return F.conv2d(x, weight, bias, padding=kernel_size // 2)

    expected = []
    for step in x.unbind(1):
        i = torch.sigmoid(conv(step, wxi) + conv(hidden, whi, bi) + wci * cell)
        f = torch.sigmoid(conv(step, wxf) + conv(hidden, whf, bf) + wcf * cell)
        cell = f * cell + i * torch.tanh(conv(step, wxc) + conv(hidden, whc, bc))
        o = torch.sigmoid(conv(step, wxo) + conv(hidden, who, bo) + wco * cell)
        hidden = o * torch.tanh(cell)
        expected.append(hidden)
    states, (last, last_cell) = module(x)
    torch.testing.assert_close(states, torch.stack(expected, 1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, hidden, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last_cell, cell, rtol=1e-12, atol=1e-12)


def test_a_sequence_in_two_parts():
    module = layer(1, 2)
    x = torch.randn(1, 5, 1, 3, 3, dtype=torch.float64)
    whole, end = module(x)
    first, state = module(x[:, :2])
    second, state = module(x[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(state, end)


def test_without_inputs_it_goes_on_as_with_zeros():
    module, free = layer(1, 2), layer(0, 2)
    free.load_state_dict({k: v for k, v in module.state_dict().items() if "input" not in k})
    _, state = module(torch.randn(1, 2, 1, 3, 3, dtype=torch.float64))
    expected, _ = module(torch.zeros(1, 3, 1, 3, 3, dtype=torch.float64), state)
    torch.testing.assert_close(free(None, state, steps=3)[0], expected)


def test_gradients():
    module = layer(1, 2, size=(3, 3))
    x = torch.randn(1, 2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    parameters = tuple(module.parameters())
    names = [name for name, _ in module.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values)), (x,))[0]

    assert torch.autograd.gradcheck(run, (x, *parameters))


def test_it_remembers_at_first():
    hidden = 4
    bias = ConvLSTM(1, hidden).from_hidden.bias
    assert bias.tolist() == [0.0] * hidden + [1.0] * hidden + [0.0] * 2 * hidden


def test_calls_that_make_no_sense():
    state = (torch.zeros(1, 2, 3, 3),) * 2
    for arguments, options in [((None,), {}), ((torch.zeros(1, 2, 3, 3, 3),), {}), ((None, state), {"steps": 2})]:
        with pytest.raises(ValueError, match="x: got"):
            ConvLSTM(1, 2)(*arguments, **options)
    for arguments, options in [((None, state), {}), ((None,), {"steps": 2}), ((torch.zeros(1, 2, 1, 3, 3), state), {})]:
        with pytest.raises(ValueError, match="in_channels=0"):
            ConvLSTM(0, 2)(*arguments, **options)
    with pytest.raises(ValueError, match="kernel_size: got 2"):
        ConvLSTM(1, 2, 2)
    with pytest.raises(ValueError, match="hidden_channels"):
        ConvLSTM(1, 0)
