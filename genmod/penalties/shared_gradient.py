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

import contextlib
import warnings
import weakref
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genmod import layout
from genmod.penalties import tape
from genmod.penalties.affine import Unsupported, per_sample
from genmod.penalties.faster import FasterConvolutions
from genmod.penalties.outputs import one_per_sample

Engine = Literal["auto", "shared", "autograd"]
Critic = Callable[[Tensor], Tensor]

_refused: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_taken: weakref.WeakSet[Any] = weakref.WeakSet()


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


@torch._disable_dynamo  # a compiled training step calls it as it is: a graph break, and the right gradients
def value_and_input_gradient(critic: Critic, x: Tensor, *, engine: Engine = "auto") -> tuple[Tensor, Tensor]:
    r""":math:`D(x_i)` and :math:`\nabla_x D(x_i)` of a critic, from which every gradient penalty is made.

    Both can be differentiated once more, by the critic's parameters: `loss(values, gradients).backward()` is exact for
    any loss, and with the shared gradient costs four passes of convolutions where autograd takes six.

    Args:
        critic: a module or function from `[N, ...]` to one value per sample, in `N` elements.
        x: samples, `[N, ...]`, floating point. Taken as constants: no gradient flows back to where they come from.
        engine: "shared" demands the shared gradient; "autograd" is a backward of a backward, for any critic; "auto"
            takes the first where it is faster and can be had, and warns once per critic where it cannot.

    Returns:
        Values `[N]`, in the critic's output dtype, and gradients, of the shape and dtype of `x`.

    Raises:
        TypeError: `x` is not a floating-point tensor.
        ValueError: the critic returns more than one value per sample, or an unknown `engine`.
        RuntimeError: `engine="shared"` and a critic that is not piecewise linear or mixes samples; the message says
            which operation stands in the way.
    """
    _check(x, engine)
    critic = getattr(critic, "_orig_mod", critic)  # what torch.compile made cannot be differentiated twice
    if torch._C._are_functorch_transforms_active():
        if engine == "shared":
            raise RuntimeError('engine: got "shared" inside a torch.func transform, expected "auto" or "autograd"')
        return _by_transform(critic, x)
    if engine == "autograd" or (engine == "auto" and (_too_small(x) or _known_to_refuse(critic))):
        return _by_autograd(critic, x)
    try:
        recorded = tape.record(critic, _as_convolutions_like_it(x))
    except Unsupported as reason:
        if engine == "shared":
            raise RuntimeError(f'engine: got "shared", and this critic cannot take it: {reason}') from None
        _remember(critic, str(reason))
        return _by_autograd(critic, x)
    with contextlib.suppress(TypeError):
        _taken.add(critic)
    found, gradients = _Shared.apply(recorded, *recorded.parameters)
    return found, gradients.contiguous(memory_format=layout.memory_format_of(x))


def _as_convolutions_like_it(x: Tensor) -> Tensor:
    """Images in channels_last on a CPU, where all passes together take 0.8 of the time; what the critic sees as it is
    written is unchanged."""
    images = x.device.type == "cpu" and x.dim() == 4 and x.dtype == torch.float32
    return x.contiguous(memory_format=torch.channels_last) if images else x


def values(critic: Critic, x: Tensor, *, engine: Engine) -> Tensor:
    """The values alone, as autograd differentiates them; to be asked for after :func:`value_and_input_gradient`.

    A critic that the shared gradient took is known to bear images in another memory format and convolutions by other
    kernels, and gets both. Any other one is called as it is.
    """
    if torch.compiler.is_compiling() or engine == "autograd" or not _was_taken(critic):
        return one_per_sample(critic(x), x.shape[0])
    with FasterConvolutions():
        return one_per_sample(critic(_as_convolutions_like_it(x)), x.shape[0])


def _check(x: object, engine: str) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = f"dtype {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x: got {got}, expected a floating-point tensor of samples")
    if x.dim() == 0:
        raise ValueError("x: got a 0-d tensor, expected the batch first")
    if engine not in ("auto", "shared", "autograd"):
        raise ValueError(f"engine: got {engine!r}, expected 'auto', 'shared' or 'autograd'")


def _too_small(x: Tensor) -> bool:
    # Keeping a tape costs a few milliseconds on a CPU, which convolutions have to earn. Measured, autograd's time over
    # ours: 0.4 and 0.96 for multilayer perceptrons of 96 and 512 units, 0.95 for DCGAN at 32 pixels and batch 8 (25k
    # numbers), 1.2 at batch 32 (98k), 1.33 at 64 pixels and batch 4 (49k).
    return x.dim() < 3 or x.numel() < 2**15


def _by_autograd(critic: Critic, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        values = one_per_sample(critic(x), x.shape[0])
        (gradients,) = torch.autograd.grad(values, x, torch.ones_like(values), create_graph=True)
    return values, gradients


def _by_transform(critic: Critic, x: Tensor) -> tuple[Tensor, Tensor]:
    pair: Any = torch.func.vjp(lambda x: one_per_sample(critic(x), x.shape[0]), x)  # a triple with has_aux only
    values, pull_back = pair
    return values, pull_back(torch.ones_like(values))[0]


def _known_to_refuse(critic: Critic) -> bool:
    try:
        return critic in _refused
    except TypeError:  # not hashable
        return False


def _was_taken(critic: Critic) -> bool:
    try:
        return critic in _taken
    except TypeError:  # neither hashable nor weakly referable: nothing is known of it
        return False


def _remember(critic: Critic, reason: str) -> None:
    """Do not try this critic again, and say why, once."""
    with contextlib.suppress(TypeError):  # neither hashable nor weakly referable: it will be tried again
        _refused[critic] = reason
        _taken.discard(critic)
    name = type(critic).__name__ if isinstance(critic, torch.nn.Module) else getattr(critic, "__name__", "the critic")
    warnings.warn(f"{name} takes its gradient penalty by autograd, not by the shared gradient: {reason}", stacklevel=4)
