"""Which operation each torch function is on the tape, by name, and why others have no place there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.node import Node

from genmod.penalties.affine import (
    Activation,
    Additive,
    Convolution,
    Linear,
    LinearLayer,
    Operation,
    Product,
    Unsupported,
)

#: Questions about a tensor that are not about its values.
METADATA = frozenset(
    [
        "__get__",
        "size",
        "dim",
        "ndimension",
        "stride",
        "numel",
        "nelement",
        "is_contiguous",
        "is_floating_point",
        "is_complex",
        "__len__",
        "element_size",
        "storage_offset",
        "get_device",
        "type_as",
        "has_names",
        "is_same_size",
    ]
)

_RESHAPES = "view reshape flatten unflatten squeeze unsqueeze contiguous clone view_as reshape_as alias"
_CASTS = "to float double half bfloat16 type"
_RESAMPLING = (
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d interpolate upsample "
    "pixel_shuffle pixel_unshuffle channel_shuffle neg negative __neg__"
)
_ANYWHERE = frozenset(f"{_RESHAPES} {_CASTS} {_RESAMPLING}".split())
_ADDITIVE = frozenset(["add", "sub", "subtract", "__add__", "__radd__", "__sub__", "__rsub__", "rsub"])
_SCALING = frozenset(["mul", "multiply", "div", "divide", "true_divide", "__mul__", "__rmul__", "__truediv__"])
_CONVOLUTIONS = frozenset(["conv1d", "conv2d", "conv3d", "critic_conv2d"])
#: What autocast casts to its lower precision.
AUTOCAST = frozenset({*_CONVOLUTIONS, "linear", "matmul", "__matmul__", "mm"})


def operation(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], values: dict[Node, Tensor]
) -> Operation:
    """The tape's operation for a call in which nodes stand for what depends on x; raises Unsupported."""
    name = function.__name__
    if "out" in kwargs:
        raise Unsupported(f"{name} writes into `out`")
    name = name if name.startswith("__") else name.rstrip("_")
    if name == "view" and not any(isinstance(a, torch.dtype) for a in (*args, *kwargs.values())):
        function = torch.Tensor.reshape  # of an image that may be in another memory format than the critic thinks
    if name in _ANYWHERE:
        return Linear(function, args, kwargs)
    if name in ("leaky_relu", "critic_leaky_relu", "relu"):
        return _activation(name, *args, **kwargs)
    if name in _CONVOLUTIONS:
        return _convolution(function, *args, **kwargs)
    if name == "linear":
        return _linear(*args, **kwargs)
    if name in _ADDITIVE:
        return _sum(function, args, kwargs, values)
    if name in _SCALING or name in ("matmul", "__matmul__", "mm"):
        return _product(function, name, args, kwargs, values)
    if name in _CHECKS:
        _CHECKS[name](name, _dimensions(values, args), *args[1:], **kwargs)
        return Linear(function, args, kwargs)
    raise Unsupported(f"{name} is not known to be piecewise linear and to keep samples apart")


def _dimensions(values: dict[Node, Tensor], args: tuple[Any, ...]) -> int:
    first = args[0][0] if isinstance(args[0], (tuple, list)) else args[0]
    return values[first].dim()


def _activation(name: str, x: Node, negative_slope: float | None = None, inplace: bool = False) -> Operation:
    if negative_slope is None:
        negative_slope = {"relu": 0.0, "leaky_relu": 0.01, "critic_leaky_relu": 0.2}[name]
    return Activation(x, float(negative_slope))


def _convolution(
    function: Any,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Operation:
    _only_input_depends(function.__name__, input, weight, bias)
    if isinstance(padding, str):
        raise Unsupported(f"{function.__name__} with padding={padding!r}, expected numbers")
    return Convolution(input, weight, bias, stride, padding, dilation, groups)


def _linear(input: Any, weight: Any, bias: Any = None) -> Operation:
    _only_input_depends("linear", input, weight, bias)
    return LinearLayer(F.linear, input, weight, bias)


def _only_input_depends(name: str, x: Any, weight: Any, bias: Any) -> None:
    if not isinstance(x, Node) or isinstance(weight, Node) or isinstance(bias, Node):
        raise Unsupported(f"{name} has a weight that depends on x")


def _sum(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], values: dict[Node, Tensor]) -> Operation:
    if any(isinstance(v, (Tensor, Node)) for v in kwargs.values()):
        raise Unsupported(f"{function.__name__} with a tensor given by keyword")
    nodes = [a for a in args[:2] if isinstance(a, Node)]
    if len({values[n].dim() for n in nodes}) > 1:
        raise Unsupported(f"{function.__name__} broadcasts over samples")
    return (Linear if len(nodes) == 2 else Additive)(function, args, kwargs)


def _product(
    function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], values: dict[Node, Tensor]
) -> Operation:
    if isinstance(args[0], Node) and isinstance(args[1], Node):
        raise Unsupported(f"{name} multiplies two values that depend on x")
    divides = name in ("div", "divide", "true_divide", "__truediv__")
    if not isinstance(args[0], Node) and (divides or "mat" in name or name == "mm"):
        raise Unsupported(f"{name} has x in its second operand")
    if "mat" in name and args[1].dim() != 2:
        raise Unsupported(f"{name} with an operand of {args[1].dim()} dimensions, expected 2")
    if any(isinstance(v, Tensor) for v in kwargs.values()) or kwargs.get("rounding_mode"):
        raise Unsupported(f"{name} with rounding or with a tensor given by keyword")
    return Product(function, args, kwargs)


# Operations with dimensions in their arguments: none of them may be the batch.


def _keep_batch(name: str, rank: int, dims: Any) -> None:
    dims = dims if isinstance(dims, (tuple, list)) else [dims]
    if any(not isinstance(d, int) or d % rank == 0 for d in dims):
        raise Unsupported(f"{name} over dimensions {list(dims)} mixes samples")


def _reduction(
    name: str, rank: int, dim: Any = None, keepdim: bool = False, *, axis: Any = None, dtype: Any = None
) -> None:
    dim = axis if dim is None else dim
    if dim is None or dim == []:
        raise Unsupported(f"{name} over all dimensions mixes samples")
    _keep_batch(name, rank, dim)


def _permute(name: str, rank: int, *dims: Any) -> None:
    dims = tuple(dims[0]) if isinstance(dims[0], (tuple, list)) else dims
    if dims[0] % rank:
        raise Unsupported(f"{name} moves the batch dimension")


def _swap(name: str, rank: int, dim0: int, dim1: int) -> None:
    _keep_batch(name, rank, (dim0, dim1))


def _join(name: str, rank: int, dim: int = 0) -> None:
    _keep_batch(name, rank, dim)


def _along(name: str, rank: int, dim: int, *rest: Any) -> None:
    _keep_batch(name, rank, dim)


def _pad(name: str, rank: int, pad: Any, mode: str = "constant", value: float | None = None) -> None:
    if len(pad) // 2 >= rank:
        raise Unsupported("pad reaches the batch dimension")
    if value:
        raise Unsupported(f"pad with {value}, expected 0")


def _index(name: str, rank: int, index: Any) -> None:
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(p, (Tensor, list, Node)) for p in parts) or parts[0] != slice(None):
        raise Unsupported("indexing that does not start with `:` picks samples")


def _dropout(name: str, rank: int, p: float = 0.5, training: bool = True, inplace: bool = False) -> None:
    if training and p > 0:
        raise Unsupported(f"{name} draws at random, and a replay would draw again")


_CHECKS: dict[str, Callable[..., None]] = {
    "mean": _reduction,
    "sum": _reduction,
    "permute": _permute,
    "transpose": _swap,
    "swapaxes": _swap,
    "cat": _join,
    "concat": _join,
    "narrow": _along,
    "select": _along,
    "flip": _along,
    "pad": _pad,
    "__getitem__": _index,
    "dropout": _dropout,
    "dropout2d": _dropout,
}
