"""The same noise for every model under comparison, in every dtype.

PyTorch draws other numbers in float64 than in float32, and genmod's kernels draw theirs inside. To compare what two
models make of noise, both must get the same: here each draw takes one key from torch's CPU generator, and the numbers
from the key. Keys come in the order of the draws, so models that draw in the same order see the same noise; a
checkpoint that rewinds the generator to compute a layer again gets the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genmod import layout

_LARGEST = 0x7FFFFFFFFFFFFFFF  # the range of the key that genmod's ops draw from torch's generator


class SameNoise(TorchDispatchMode):
    """A context in which every draw is made from a key of torch's CPU generator, and then rounded to bfloat16's grid.

    So the numbers are exact in every dtype. Covered are torch's normal, uniform, Bernoulli, integer and permutation
    draws, dropout, and `genmod.ops.reparameterize` and `sample_kl`. `draws` counts them.

    Raises:
        ValueError: inside, where an operation draws in a way that cannot be repeated in another dtype.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draws = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        arguments = func._schema.arguments
        given = {a.name: a.default_value for a in arguments if a.has_default_value()}
        given |= dict(zip((a.name for a in arguments), args, strict=False)) | (kwargs or {})
        name = func._schema.name
        if name.startswith("genmod::") and given.get("seed") is not None:
            return func(**self._with_noise(name, given))
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        if not _is_random(given):
            return _quietly(func, args, kwargs or {})
        if name not in _DRAWS:
            raise ValueError(
                f"model: it draws with {name}, whose numbers cannot be given to the reference in another dtype; switch "
                "that off (model.eval(), a dropout of 0), or compare the part of the model that does not draw"
            )
        self.draws += 1
        key = int(torch.randint(_LARGEST, ()))
        return _DRAWS[name](key, given, lambda: _quietly(func, args, kwargs or {}))

    def _with_noise(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of one of genmod's ops, with the noise that its key stands for written out."""
        if "noise" not in given:
            raise ValueError(f"model: it samples with {name}, whose noise cannot be given; compare the part before it")
        if given["noise"] is None:
            like = layout.split(given["mean"], given["logvar"])[0]
            given |= {"noise": _normal(int(given["seed"]), like.shape).to(like), "seed": None}
        return given


def _is_random(given: dict[str, Any]) -> bool:
    """Whether the call draws: a dropout of zero, in attention and recurrent layers too, does not."""
    probability = given.get("dropout_p", given.get("dropout", given.get("p")))
    return not (isinstance(probability, (int, float)) and probability in (0, 1))


def _quietly(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The draw itself, for the shape of its result; torch's generator stays where it was."""
    with torch.random.fork_rng(devices=[]):
        return func(*args, **kwargs)


def _generator(key: int) -> torch.Generator:
    return torch.Generator().manual_seed(key)


def _normal(key: int, shape: Sequence[int]) -> Tensor:
    return torch.randn(tuple(shape), generator=_generator(key)).bfloat16().float()


def _uniform(key: int, shape: Sequence[int]) -> Tensor:
    return torch.rand(tuple(shape), generator=_generator(key))


def _fill_normal(key: int, given: dict[str, Any], draw: Callable[[], Tensor]) -> Tensor:
    """Also of `normal` and `normal_`, with their mean and standard deviation."""
    result = draw()
    noise = _normal(key, result.shape).to(result)
    return result.copy_(noise * given.get("std", 1.0) + given.get("mean", 0.0))


def _fill_uniform(key: int, given: dict[str, Any], draw: Callable[[], Tensor]) -> Tensor:
    """Also of `uniform_`, with its bounds."""
    result, low, high = draw(), given.get("from", 0.0), given.get("to", 1.0)
    coarse = (_uniform(key, result.shape) * 256).floor() / 256  # exact in bfloat16, and below 1
    return result.copy_(coarse.to(result) * (high - low) + low)


def _bernoulli(key: int, given: dict[str, Any], draw: Callable[[], Tensor]) -> Tensor:
    """`bernoulli_` has the probability in p, 0.5 by default; `bernoulli` in p or in the tensor."""
    result = draw()
    return result.copy_(_uniform(key, result.shape).to(result.device) < given.get("p", 0.5))


def _bernoulli_of(key: int, given: dict[str, Any], draw: Callable[[], Tensor]) -> Tensor:
    return _bernoulli(key, {"p": given["self"]} | given, draw)


def _native_dropout(key: int, given: dict[str, Any], draw: Callable[[], Any]) -> tuple[Tensor, Tensor]:
    x, p = given["input"], given["p"]
    if given["train"] is False:
        return draw()
    mask = _uniform(key, x.shape).to(x.device) >= p
    return x * mask / (1 - p if p < 1 else 1), mask


def _integers(key: int, given: dict[str, Any], draw: Callable[[], Tensor]) -> Tensor:
    result = draw()
    low, high = given.get("low", 0), given["high"]
    if result.dim() == 0 and high == _LARGEST:  # the key of one of genmod's ops: the noise comes from ours
        return result.fill_(key)
    return result.copy_(torch.randint(low, high, tuple(result.shape), generator=_generator(key)))


def _permutation(key: int, given: dict[str, Any], draw: Callable[[], Tensor]) -> Tensor:
    return draw().copy_(torch.randperm(given["n"], generator=_generator(key)))


_DRAWS: dict[str, Callable[[int, dict[str, Any], Callable[[], Any]], Any]] = {
    "aten::randn": _fill_normal,
    "aten::randn_like": _fill_normal,
    "aten::normal": _fill_normal,
    "aten::normal_": _fill_normal,
    "aten::rand": _fill_uniform,
    "aten::rand_like": _fill_uniform,
    "aten::uniform_": _fill_uniform,
    "aten::bernoulli": _bernoulli_of,
    "aten::bernoulli_": _bernoulli,
    "aten::native_dropout": _native_dropout,
    "aten::randint": _integers,
    "aten::randint_like": _integers,
    "aten::randperm": _permutation,
}
