"""`compare`: run the original and the accelerated model beside each other, against a wider reference."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from genmod import measure
from genmod.comparison.observe import Inputs, Observation, cotangents, named_tensors, observe, seeded
from genmod.comparison.result import Comparison, Difference, Speed
from genmod.swap import accelerate, restore

REFERENCES = (torch.float64, torch.float32)


def compare(
    model_or_factory: nn.Module | Callable[[], nn.Module],
    inputs: Any,
    *,
    reference: torch.dtype | None = None,
    backward: bool = True,
    compile: bool = True,
    accelerated: nn.Module | None = None,
    seed: int = 0,
    budget: float = 20.0,
) -> Comparison:
    r"""Prove that an accelerated model is the same model, and measure what it gained.

    Three copies of the model get the same inputs, the same noise and the same gradient of the outputs: the original,
    the accelerated one (`genmod.accelerate`), and the reference, the original in a wider dtype. For every output and
    gradient the table has the error of the accelerated model, :math:`\max|a - r|` and
    :math:`\lVert a - r\rVert_2 / \lVert r\rVert_2`, beside that of stock torch. Within the bound is what errs at most
    twice as much as stock torch, or no more than rounding leaves in that dtype. Then original, `torch.compile` of the
    original, and accelerated take turns: time and peak memory, without gradients and with. The model itself is never
    touched, nor are the inputs, nor torch's random state.

    Args:
        model_or_factory: the model, in training or evaluation mode as it is to be compared, or a function without
            arguments that makes it. If the model is accelerated already, its original is compared.
        inputs: a tensor, a sequence of positional arguments, a mapping of keyword arguments, or `Inputs` with both.
        reference: `torch.float64` or `torch.float32`; by default float64, for models in half precision float32.
        backward: compare and time gradients too, of all floating inputs and of the parameters.
        compile: time `torch.compile` of the original too; where it fails, the table says why.
        accelerated: compare with this model, of the same parameter names, in place of `genmod.accelerate`'s.
        seed: of the noise that the model draws, and of the outputs' gradients.
        budget: about so many seconds for each of the two timings; 0 leaves them out, and `torch.compile` with them.

    Returns:
        A `Comparison`: prints as a table; `equal`, `to_dict()`, `to_json(path)`, `plot(path)`.

    Raises:
        TypeError: `model_or_factory` is no module and makes none, or `inputs` or `reference` of another type.
        ValueError: a model that cannot be copied, that does not run in the reference's dtype, that draws noise in a way
            that cannot be repeated in another dtype, or that has no tensor in its output or, with `backward`, none that
            depends on a tensor that requires grad.
    """
    original = _original(model_or_factory, seed)
    given = Inputs.of(inputs)
    device, dtype = _device_and_dtype(original, given)
    wide = _reference_dtype(reference, device, dtype)
    report = None
    if accelerated is None:
        fast = _copy(original)
        report = accelerate(fast)
    else:
        fast = _copy(_module("accelerated", accelerated))
    options: dict[str, Any] = {"backward": backward, "seed": seed}
    stock_seen = observe(_copy(original), given, dtype=dtype, **options)
    fast_seen = observe(_copy(fast), given, dtype=dtype, **options)
    differences = list(_differences(stock_seen, fast_seen, _observe_wide(original, given, device, wide, options)))
    speeds: tuple[Speed, ...] = ()
    compile_error = None
    if budget > 0:
        contenders = {"stock": original, "genmod": fast}
        speeds, compile_error = _speeds(contenders, given, device, backward, compile, seed, budget)
    return Comparison(
        model=type(original).__name__,
        inputs=tuple(f"{name}{list(t.shape)}" for name, t in given.named().items()),
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        mode="training" if original.training else "evaluation",
        reference=str(wide).removeprefix("torch."),
        differences=tuple(differences),
        speeds=speeds,
        random=stock_seen.draws > 0 or fast_seen.draws > 0,
        compile_error=compile_error,
        swaps=report,
        versions=_versions(),
        images=_images(stock_seen, fast_seen),
    )


# The models.


def _module(name: str, value: Any) -> nn.Module:
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name}: got {type(value).__name__}, expected an nn.Module")
    return value


def _original(model_or_factory: Any, seed: int) -> nn.Module:
    """A copy of the model, with everything undone that `accelerate` did to it."""
    if isinstance(model_or_factory, nn.Module):
        model = _copy(model_or_factory)
    elif callable(model_or_factory):
        with seeded(seed):
            model = model_or_factory()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model_or_factory: it returned a {type(model).__name__}, expected an nn.Module")
    else:
        raise TypeError(
            f"model_or_factory: got {type(model_or_factory).__name__}, expected an nn.Module or a function without "
            "arguments that makes one"
        )
    restore(model)
    return model


def _copy(model: nn.Module) -> nn.Module:
    try:
        copied = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"model_or_factory: the model cannot be copied: {error}") from error
    copied.zero_grad(set_to_none=True)
    return copied


def _device_and_dtype(model: nn.Module, inputs: Inputs) -> tuple[torch.device, torch.dtype]:
    floating = [t for t in (*model.parameters(), *model.buffers(), *inputs.named().values()) if t.is_floating_point()]
    if not floating:
        raise ValueError("inputs: got no floating-point tensor, and the model has none, so there is nothing to compare")
    return floating[0].device, floating[0].dtype


def _reference_dtype(reference: Any, device: torch.device, dtype: torch.dtype) -> torch.dtype:
    if reference is None:
        return torch.float64 if dtype in REFERENCES and device.type != "mps" else torch.float32
    if not isinstance(reference, torch.dtype):
        raise TypeError(f"reference: got {reference!r}, expected torch.float64 or torch.float32")
    if reference not in REFERENCES:
        raise ValueError(f"reference: got {reference}, expected torch.float64 or torch.float32")
    return reference


# Accuracy.


def _observe_wide(
    model: nn.Module, inputs: Inputs, device: torch.device, dtype: torch.dtype, options: dict[str, Any]
) -> Observation:
    try:
        with torch.autocast(device.type, enabled=False):
            return observe(_copy(model).to(dtype), inputs, dtype=dtype, **options)
    except RuntimeError as error:
        raise ValueError(
            f"reference: the original does not run in {dtype}: {error}; pass another reference of {REFERENCES}"
        ) from error


def _differences(stock: Observation, fast: Observation, wide: Observation) -> Iterable[Difference]:
    kinds = ("outputs", "output"), ("input_gradients", "input gradient"), ("parameter_gradients", "parameter gradient")
    for field, kind in (*kinds, ("buffers", "buffer")):
        of_stock, of_fast, of_wide = (getattr(seen, field) for seen in (stock, fast, wide))
        scale = max((float(t.abs().max()) for t in of_wide.values() if t.numel() and not t.is_complex()), default=0.0)
        for name in dict.fromkeys([*of_stock, *of_fast]):
            missing = _missing(name, of_stock, of_fast, of_wide)
            if missing:
                shape = tuple((of_stock.get(name, of_fast.get(name))).shape)
                yield Difference(kind, name, shape, *(float("nan"),) * 4, False, scale, missing)
                continue
            yield difference(kind, name, of_stock[name], of_fast[name], of_wide[name], scale)


def _missing(name: str, stock: dict[str, Tensor], fast: dict[str, Tensor], wide: dict[str, Tensor]) -> str:
    for who, seen in (("original", stock), ("accelerated model", fast), ("reference", wide)):
        if name not in seen:
            return f"the {who} has none"
        if seen[name].shape != stock[name].shape:
            return f"{who}: shape {tuple(seen[name].shape)}"
    return "" if fast[name].dtype == stock[name].dtype else f"accelerated model: {fast[name].dtype}"


def difference(kind: str, name: str, stock: Tensor, fast: Tensor, wide: Tensor, scale: float) -> Difference:
    """The errors of two tensors against a third of the same shape."""
    (largest_stock, relative_stock), (largest, relative) = _error(stock, wide), _error(fast, wide)
    # torch.equal takes NaN for unequal, and -0 for 0: two models that make NaN at the same place are the same.
    same = torch.equal(torch.nan_to_num(stock), torch.nan_to_num(fast)) and torch.equal(stock.isnan(), fast.isnan())
    shape = tuple(stock.shape)
    return Difference(kind, name, shape, largest_stock, largest, relative_stock, relative, same, scale)


def _error(got: Tensor, wide: Tensor) -> tuple[float, float]:
    """Largest and relative error; infinities and NaN count as equal where both have them."""
    got, wide = got.double(), wide.double()
    error = torch.where((got == wide) | (got.isnan() & wide.isnan()), 0.0, (got - wide).abs())
    error = error.nan_to_num(nan=float("inf"), posinf=float("inf"))
    if not error.numel() or not error.any():
        return 0.0, 0.0
    norm = wide[wide.isfinite()].norm()
    return float(error.max()), float(error.norm() / norm)


def _images(stock: Observation, fast: Observation) -> tuple[Tensor, Tensor] | None:
    """The first sample of the first output that is grey or RGB images."""
    for name, t in stock.outputs.items():
        if t.dim() == 4 and t.shape[1] in (1, 3) and min(t.shape) > 0 and name in fast.outputs:
            return t[0].float().cpu(), fast.outputs[name][0].float().cpu()
    return None


# Speed.


@dataclasses.dataclass
class _Runner:
    """One contender's call: forward alone, or forward and backward."""

    model: Callable[..., Any]
    inputs: Inputs
    parameters: list[Tensor]
    seed: int

    def __post_init__(self) -> None:
        self.gradients: list[Tensor] | None = None

    def forward(self) -> None:
        with torch.no_grad():
            self.model(*self.inputs.args, **self.inputs.kwargs)

    def forward_and_backward(self) -> None:
        outputs = list(named_tensors(self.model(*self.inputs.args, **self.inputs.kwargs), "").values())
        if self.gradients is None:
            self.gradients = cotangents(outputs, self.seed)[1]
        torch.autograd.backward([t for t in outputs if t.requires_grad], self.gradients)
        for leaf in (*self.parameters, *self.inputs.named().values()):
            leaf.grad = None


def _speeds(
    models: dict[str, nn.Module],
    inputs: Inputs,
    device: torch.device,
    backward: bool,
    compile: bool,
    seed: int,
    budget: float,
) -> tuple[tuple[Speed, ...], str | None]:
    """Times and peaks of all contenders in each mode, and why there is no compiled one."""
    runners = {}
    for name, model in models.items():
        runners[name] = _Runner(model, inputs.clone(differentiable=backward), list(model.parameters()), seed)
    compile_error = None
    if compile:
        compiled, compile_error = _compiled(_copy(models["stock"]), inputs, backward, seed)
        if compiled is not None:
            runners = {"stock": runners["stock"], "compile": compiled, "genmod": runners["genmod"]}
    speeds: list[Speed] = []
    with seeded(seed):
        for mode in ["forward", "forward+backward"] if backward else ["forward"]:
            calls = {n: r.forward if mode == "forward" else r.forward_and_backward for n, r in runners.items()}
            times = measure.interleaved(calls, device, budget=budget)
            peaks = {name: measure.peak_bytes(call, device) for name, call in calls.items()}
            speeds += _in_ratio(mode, times, peaks)
    return tuple(speeds), compile_error


def _compiled(model: nn.Module, inputs: Inputs, backward: bool, seed: int) -> tuple[_Runner | None, str | None]:
    """The compiled original, run once in each mode, or why it does not compile."""
    runner = _Runner(torch.compile(model), inputs.clone(differentiable=backward), list(model.parameters()), seed)
    # Other models of the same class may have used up Dynamo's recompilations; it would fall back to eager silently.
    limits: Any = contextlib.nullcontext()
    if hasattr(torch._dynamo.config, "recompile_limit"):
        limits = torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True)
    try:
        with seeded(seed), limits:
            runner.forward()
            if backward:
                runner.forward_and_backward()
    except Exception as error:  # whatever a compiler raises is a line of the table
        return None, f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    return runner, None


def _in_ratio(mode: str, times: dict[str, list[float]], peaks: dict[str, int]) -> list[Speed]:
    median = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name, values in times.items():
        low, _, high = statistics.quantiles(values, n=4)
        spread = (high - low) / median[name]
        memory_ratio = peaks[name] / peaks["genmod"] if peaks["genmod"] else float("inf")
        time_ratio = median[name] / median["genmod"]
        rows.append(Speed(mode, name, median[name], spread, peaks[name], time_ratio, memory_ratio))
    return rows


def _versions() -> dict[str, Any]:
    from importlib import metadata

    return {
        "torch": torch.__version__,
        "genmod": metadata.version("genmod-torch"),
        "threads": torch.get_num_threads(),
    }
