r"""A critic's value and its input gradient, whose own backward pass shares one weight gradient between the two.

A critic made of convolutions, linear layers, (leaky) ReLUs, average pools, reshapes, sums and scalings is affine around
each sample :math:`x_i` once its masks are frozen. For constants :math:`c_i` and :math:`v_i`

.. math::
    \sum_i c_i D(x_i) + \langle v_i, \nabla_x D(x_i) \rangle = \sum_i \tilde D_i(c_i x_i + v_i),

where :math:`\tilde D_i` is the same network with the masks of :math:`x_i` and its constants scaled by :math:`c_i`. The
signals of its backward pass are those of :math:`\nabla_x D`, which were computed already. So the gradient of *any* loss
:math:`f(D, \nabla_x D)` by the parameters costs a run forward and one weight gradient per layer: four passes of
convolutions in all, where a backward of a backward takes six.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genmod.penalties import tape
from genmod.penalties.affine import Unsupported, per_sample

Engine = Literal["auto", "shared", "autograd"]
Critic = Callable[[Tensor], Tensor]

_refused: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recorded: tape.Tape, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.tape = recorded
        return recorded.output, recorded.input_gradient()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, c: Tensor | None, v: Tensor | None) -> tuple[Tensor | None, ...]:
        recorded: tape.Tape = ctx.tape
        if recorded is None:
            raise RuntimeError("the tape of a critic was freed by the first backward; pass retain_graph=True to it")
        if c is None and v is None:
            return (None,) * (1 + len(recorded.parameters))
        x = recorded.x
        scale = torch.zeros_like(recorded.output) if c is None else c
        at = torch.zeros_like(x) if c is None else x * per_sample(scale, x)
        if v is not None:
            at = at + v.to(at.dtype)
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        if not keep:
            ctx.tape = None
        return None, *recorded.replay(scale, at, keep)
