"""The convolutional LSTM: a recurrent network whose states are maps of features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]


class ConvLSTM(nn.Module):
    r"""A layer of the convolutional LSTM of Shi et al. (NeurIPS 2015, arXiv:1506.04214).

    With :math:`*` a convolution and :math:`\circ` an elementwise product, for every step t:

    .. math::
        i_t &= \sigma(W_{xi} * X_t + W_{hi} * H_{t-1} + W_{ci} \circ C_{t-1} + b_i) \\
        f_t &= \sigma(W_{xf} * X_t + W_{hf} * H_{t-1} + W_{cf} \circ C_{t-1} + b_f) \\
        C_t &= f_t \circ C_{t-1} + i_t \circ \tanh(W_{xc} * X_t + W_{hc} * H_{t-1} + b_c) \\
        o_t &= \sigma(W_{xo} * X_t + W_{ho} * H_{t-1} + W_{co} \circ C_t + b_o) \\
        H_t &= o_t \circ \tanh(C_t)

    The convolutions of the inputs of all steps are one call; only those of the states go step by step. The bias of the
    forget gates begins at 1, so that a new network remembers (Jozefowicz et al., ICML 2015).

    Args:
        in_channels: of the inputs; 0 for a layer without any, such as a forecaster that goes on from a state.
        hidden_channels: of both states.
        kernel_size: of all convolutions; odd, so that the map keeps its size.
        size: (h, w) of the maps, for the paper's peepholes :math:`W_{c\cdot}`, which have a weight per pixel. Without
            it there are none, and maps of any size are taken.

    Shape:
        `forward(x, state=None)`: `[B, T, in_channels, h, w]` to all states H, `[B, T, hidden_channels, h, w]`, and the
        last (H, C). Without inputs: `forward(None, state, steps=T)`.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: int = 3,
        *,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: got {kernel_size}, expected an odd number")
        if in_channels < 0 or hidden_channels < 1:
            raise ValueError(
                f"in_channels, hidden_channels: got {in_channels} and {hidden_channels}, expected >= 0 and >= 1"
            )
        self.in_channels, self.hidden_channels = in_channels, hidden_channels
        padding = kernel_size // 2
        # Gates in the order i, f, c, o. The bias is that of the convolution of H, which is always there.
        self.from_input = (
            nn.Conv2d(in_channels, 4 * hidden_channels, kernel_size, padding=padding, bias=False)
            if in_channels
            else None
        )
        self.from_hidden = nn.Conv2d(hidden_channels, 4 * hidden_channels, kernel_size, padding=padding)
        # i, f, o; zero at first, as a network without peepholes.
        self.peephole = None if size is None else nn.Parameter(torch.zeros(3, hidden_channels, *size))
        with torch.no_grad():
            bias = self.from_hidden.bias
            assert bias is not None
            bias.zero_()[hidden_channels : 2 * hidden_channels] = 1

    def forward(
        self, x: Tensor | None, state: State | None = None, *, steps: int | None = None
    ) -> tuple[Tensor, State]:
        """All states H, and the last (H, C).

        Raises:
            ValueError: inputs that a layer lacks or does not take, `steps` beside inputs, no state and no inputs.
        """
        inputs: tuple[Tensor, ...] | None = None
        if self.from_input is not None:
            if x is None or x.dim() != 5 or x.shape[2] != self.in_channels or x.shape[1] == 0 or steps is not None:
                got = "None" if x is None else f"shape {tuple(x.shape)}"
                raise ValueError(
                    f"x: got {got}{'' if steps is None else ' beside steps'}, expected [B, T, {self.in_channels}, h, w]"
                )
            inputs = self.from_input(x.flatten(0, 1)).unflatten(0, x.shape[:2]).unbind(1)
            steps = len(inputs)
            if state is None:
                zeros = x.new_zeros(len(x), self.hidden_channels, *x.shape[3:])
                state = zeros, zeros
        if inputs is None and (x is not None or state is None or steps is None or steps < 1):
            raise ValueError("x: a layer with in_channels=0 takes no inputs, but a state and the number of steps")
        assert state is not None and steps is not None
        hidden, cell = state
        outputs = []
        for step in range(steps):
            gates = self.from_hidden(hidden)
            hidden, cell = self._step(gates if inputs is None else gates + inputs[step], cell)
            outputs.append(hidden)
        return torch.stack(outputs, 1), (hidden, cell)

    def _step(self, gates: Tensor, cell: Tensor) -> State:
        i, f, c, o = gates.chunk(4, 1)
        if self.peephole is not None:
            i, f = i + self.peephole[0] * cell, f + self.peephole[1] * cell
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(c)
        if self.peephole is not None:
            o = o + self.peephole[2] * cell
        return torch.sigmoid(o) * torch.tanh(cell), cell
