r"""The operations that a piecewise-linear critic is made of, each in the three ways that the shared gradient runs it.

Around a sample, each operation is affine, :math:`y = L x + b`, with :math:`L` and :math:`b` made of parameters and of
activation masks. It is run

* `forward`: :math:`y = L x + b` at the sample, remembering masks and no activations;
* `adjoint`: :math:`s \mapsto L^\top s`, which takes the critic's output back to its input gradient;
* `replay`: :math:`y = L x + c\,b` with the same masks, at another point and with the constants scaled by `c`, one
number
  per sample; and the gradients of the parameters under the signal `s` that `adjoint` had at this operation.

Everything here keeps samples apart: the batch stays the first dimension and no operation looks across it. What would is
refused with `Unsupported`, as is everything else that is not listed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.node import Node, map_aggregate

from genmod import layout
from genmod.ops._convolution import Geometry, convolution, input_gradient, weight_gradient
from genmod.ops.critic import leaky_relu_apply, leaky_relu_mask


class Unsupported(Exception):
    """Why a critic cannot take the shared gradient."""


Values = dict[Node, Tensor]


def substitute(arguments: Any, values: Values) -> Any:
    """`arguments` with every node of the tape replaced by its value."""
    return map_aggregate(arguments, lambda a: values[a] if isinstance(a, Node) else a)


def per_sample(c: Tensor, like: Tensor) -> Tensor:
    """One number per sample, shaped to multiply `like`."""
    return c.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


class Operation:
    """One call of the critic's forward: `function(*args, **kwargs)`, with nodes in place of what depends on x."""

    def __init__(self, function: Callable[..., Tensor], args: Any, kwargs: Any) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.operands: list[Node] = []
        map_aggregate((args, kwargs), lambda a: self.operands.append(a) if isinstance(a, Node) else None)
        self.parameters: list[Tensor] = []

    def call(self, args: Any, values: Values) -> Tensor:
        return self.function(*substitute(args, values), **substitute(self.kwargs, values))

    def forward(self, values: Values) -> Tensor:
        return self.call(self.args, values)

    def adjoint(self, signal: Tensor, inputs: Values) -> Values:
        """The signal at each operand; `inputs` has tensors of the operands' shapes and strides, of any value."""
        with torch.enable_grad():
            # The adjoint of a linear map is the same everywhere, so its operands are not kept for it.
            leaves = {node: value.requires_grad_() for node, value in inputs.items()}
            output = self.call(self.args, leaves)
            found = torch.autograd.grad(output, list(leaves.values()), signal)
        return dict(zip(leaves, found, strict=True))

    def replay(self, c: Tensor, signal: Tensor, values: Values) -> tuple[Tensor, Sequence[Tensor]]:
        return self.call(self.args, values), ()


class Linear(Operation):
    """Linear in what depends on x, with nothing else in it: reshapes, sums, pooling, resampling, padding."""


class Additive(Operation):
    """A sum or difference of something that depends on x and something that does not."""

    def __init__(self, function: Callable[..., Tensor], args: Any, kwargs: Any) -> None:
        super().__init__(function, args, kwargs)
        self.parameters = [a for a in args if isinstance(a, Tensor) and a.requires_grad]

    def replay(self, c: Tensor, signal: Tensor, values: Values) -> tuple[Tensor, Sequence[Tensor]]:
        like = values[self.operands[0]]
        scale = per_sample(c, like)
        leaves: list[Tensor] = []

        def scaled(a: Any) -> Any:
            if isinstance(a, Node):
                return values[a]
            if isinstance(a, Tensor) and a.requires_grad:
                leaves.append(a.detach().requires_grad_())
                a = leaves[-1]
            return scale * a

        with torch.enable_grad():
            output = self.function(*map(scaled, self.args), **self.kwargs)
            grads = torch.autograd.grad(output, leaves, signal) if leaves else ()
        return output.detach(), grads


class Product(Operation):
    """Linear in one operand that depends on x and in one that does not: scaling, matrix products, division."""

    def __init__(self, function: Callable[..., Tensor], args: Any, kwargs: Any) -> None:
        super().__init__(function, args, kwargs)
        self.parameters = [a for a in args if isinstance(a, Tensor) and a.requires_grad]

    def replay(self, c: Tensor, signal: Tensor, values: Values) -> tuple[Tensor, Sequence[Tensor]]:
        leaves: list[Tensor] = []

        def tracked(a: Any) -> Any:
            if isinstance(a, Tensor) and a.requires_grad:
                leaves.append(a.detach().requires_grad_())
                return leaves[-1]
            return values[a] if isinstance(a, Node) else a

        with torch.enable_grad():
            output = self.function(*map(tracked, self.args), **self.kwargs)
            grads = torch.autograd.grad(output, leaves, signal) if leaves else ()
        return output.detach(), grads


class Layer(Operation, ABC):
    """A convolution or a linear layer: `function(x, weight, bias, *options)`, its channels at `channel_dim`."""

    channel_dim: int

    def __init__(
        self, function: Callable[..., Tensor], x: Node, weight: Tensor, bias: Tensor | None, *options: Any
    ) -> None:
        super().__init__(function, (x, weight, bias, *options), {})
        self.x, self.weight, self.bias, self.options = x, weight, bias, options
        self.frozen = weight.detach()
        self.parameters = [p for p in (weight, bias) if p is not None and p.requires_grad]

    def replay(self, c: Tensor, signal: Tensor, values: Values) -> tuple[Tensor, Sequence[Tensor]]:
        x = values[self.x]
        output = self.function(x, self.frozen, None, *self.options)
        grads = [self.weight_gradient(signal, x)] if self.weight.requires_grad else []
        if self.bias is None:
            return output, grads
        scale = per_sample(c, output)
        shape = [1] * output.dim()
        shape[self.channel_dim] = -1
        output += scale * self.bias.detach().view(shape)
        if self.bias.requires_grad:
            others = [d for d in range(output.dim()) if d != self.channel_dim % output.dim()]
            grads.append((signal * scale).sum(others))
        return output, grads

    @abstractmethod
    def weight_gradient(self, signal: Tensor, x: Tensor) -> Tensor:
        """The gradient of the weight where the operand is `x` and the signal at the output is `signal`."""


class LinearLayer(Layer):
    """:math:`x W^\\top + b` over the last dimension."""

    channel_dim = -1

    def adjoint(self, signal: Tensor, inputs: Values) -> Values:
        return {self.x: signal @ self.frozen}

    def weight_gradient(self, signal: Tensor, x: Tensor) -> Tensor:
        return signal.flatten(0, -2).t() @ x.flatten(0, -2)


class Convolution(Layer):
    """A convolution; its adjoint and its weight gradient are convolutions, too."""

    channel_dim = 1

    def __init__(
        self, x: Node, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> None:
        rank = weight.dim() - 2
        stride, padding, dilation = (
            tuple(v) if isinstance(v, (tuple, list)) else (v,) * rank for v in (stride, padding, dilation)
        )
        super().__init__(convolution, x, weight, bias, Geometry(stride, padding, dilation, groups))

    def forward(self, values: Values) -> Tensor:
        # Four convolutions read the weight: it is brought into the image's memory format once.
        form = layout.memory_format_of(values[self.x])
        self.frozen = self.frozen.contiguous(memory_format=form)
        return convolution(
            values[self.x], self.frozen, None if self.bias is None else self.bias.detach(), *self.options
        )

    def adjoint(self, signal: Tensor, inputs: Values) -> Values:
        return {self.x: input_gradient(signal, self.frozen, inputs[self.x].shape, *self.options)}

    def weight_gradient(self, signal: Tensor, x: Tensor) -> Tensor:
        return weight_gradient(signal, x, self.weight.shape, *self.options)


class Activation(Operation):
    """ReLU or leaky ReLU: the identity on one side of zero, a multiple of it on the other."""

    def __init__(self, x: Node, slope: float) -> None:
        super().__init__(F.leaky_relu, (x, slope), {})
        self.x, self.slope = x, slope
        self.mask: Tensor | None = None

    def forward(self, values: Values) -> Tensor:
        output, self.mask = leaky_relu_mask(values[self.x], self.slope)
        return output

    def masked(self, t: Tensor) -> Tensor:
        assert self.mask is not None, "forward has run"
        return leaky_relu_apply(t, self.mask, self.slope)

    def adjoint(self, signal: Tensor, inputs: Values) -> Values:
        return {self.x: self.masked(signal)}

    def replay(self, c: Tensor, signal: Tensor, values: Values) -> tuple[Tensor, Sequence[Tensor]]:
        return self.masked(values[self.x]), ()
