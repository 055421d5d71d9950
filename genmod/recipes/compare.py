"""The `genmod compare` command: any model that a function makes, before and after `genmod.accelerate`."""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from genmod.comparison import Comparison, Inputs, compare
from genmod.recipes import RecipeError, need

_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
_INTEGERS = {"int64": torch.int64, "int32": torch.int32}
_INPUT = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:,\d+)*)(?::(?P<dtype>\w+))?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `genmod compare`."""
    factory = "package.module:function or file.py:function; a function without arguments that returns the model"
    parser.add_argument("factory", metavar="MODULE:FACTORY", help=factory)
    shape = (
        "shape of an argument, such as 1,4,32,32; NAME=SHAPE for a keyword; SHAPE:int64 for integers below 10; repeat "
        "for more arguments"
    )
    parser.add_argument("--input", action="append", required=True, metavar="SHAPE", help=shape)
    parser.add_argument("--dtype", choices=list(_DTYPES), help="of model and inputs (default: the model's)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--eval", action="store_true", help="in evaluation mode (default: as the factory leaves it)")
    parser.add_argument("--no-backward", dest="backward", action="store_false", help="forward only")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="do not time torch.compile")
    budget = "seconds for each of the two timings; 0 leaves them out (default: %(default)s)"
    parser.add_argument("--budget", type=float, default=20.0, metavar="SECONDS", help=budget)
    parser.add_argument("--seed", type=int, default=0, help="of weights, inputs and noise (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw times, and images if the model makes some")


def main(args: argparse.Namespace) -> int:
    """Compares and prints the table. Returns 1 if the models differ, 2 for what the user can put right."""
    try:
        comparison = _run(args)
        print(comparison)
        if args.json:
            comparison.to_json(args.json)
        if args.plot:
            need("matplotlib")
            comparison.plot(args.plot)
    except (RecipeError, ValueError, TypeError) as error:
        print(f"genmod compare: {error}", file=sys.stderr)
        return 2
    return 0 if comparison.equal else 1


def _run(args: argparse.Namespace) -> Comparison:
    for path in (args.json, args.plot):
        if path is not None and not path.resolve().parent.is_dir():
            raise RecipeError(f"{path}: there is no folder {path.resolve().parent}")
    device = _device(args.device)
    torch.manual_seed(args.seed)
    model = _model(args.factory).to(device)
    if args.dtype:
        model = model.to(_DTYPES[args.dtype])
    if args.eval:
        model = model.eval()
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    inputs = _inputs(args.input, own, device)
    try:
        with torch.no_grad():
            copy.deepcopy(model)(*inputs.args, **inputs.kwargs)
    except Exception as error:  # whatever the user's model raises is about the user's model and inputs
        given = ", ".join(args.input)
        raise RecipeError(f"--input: the model does not take {given}: {type(error).__name__}: {error}") from error
    return compare(
        model, inputs, backward=args.backward, compile=args.compile, seed=args.seed, budget=max(args.budget, 0.0)
    )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # CUDA's absence is an assertion
        raise RecipeError(f"--device: got {name!r}: {str(error).splitlines()[0]}") from error
    return device


def _model(factory: str) -> nn.Module:
    """Call what `module:function` or `file.py:function` names."""
    where, colon, name = factory.rpartition(":")
    if not colon or not where or not name:
        raise RecipeError(f"factory: got {factory!r}, expected package.module:function or file.py:function")
    module = _from_file(Path(where)) if where.endswith(".py") else _from_name(where)
    made: Any = module
    for part in name.split("."):
        if not hasattr(made, part):
            raise RecipeError(f"factory: {where} has no {name!r}")
        made = getattr(made, part)
    if not callable(made):
        raise RecipeError(f"factory: {factory} is a {type(made).__name__}, expected a function that returns a model")
    try:
        model = made if isinstance(made, nn.Module) else made()
    except Exception as error:  # the user's function: its trouble is the user's
        raise RecipeError(f"factory: {factory}() raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise RecipeError(f"factory: {factory}() returned a {type(model).__name__}, expected an nn.Module")
    return model


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise RecipeError(f"factory: there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # pickling and dataclasses look it up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RecipeError(f"factory: {path} raised {type(error).__name__}: {error}") from error
    return module


def _from_name(name: str) -> ModuleType:
    if "" not in sys.path:  # as `python -m` would: the folder the command is run in
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RecipeError(f"factory: cannot import {name}: {error}") from error
    except Exception as error:
        raise RecipeError(f"factory: importing {name} raised {type(error).__name__}: {error}") from error


def _inputs(specs: list[str], dtype: torch.dtype, device: torch.device) -> Inputs:
    """Random tensors: normal ones in the model's dtype, integers below 10."""
    positional: list[Tensor] = []
    named: dict[str, Tensor] = {}
    known = _DTYPES | _INTEGERS
    for spec in specs:
        match = _INPUT.fullmatch(spec.replace(" ", ""))
        if match is None or match["dtype"] not in (None, *known):
            raise RecipeError(f"--input: got {spec!r}, expected [NAME=]SHAPE[:DTYPE] such as 1,4,32,32 or 1:int64")
        shape = [int(size) for size in match["shape"].split(",")]
        wanted = known.get(match["dtype"], dtype)
        made = torch.randint(10, shape, dtype=wanted) if wanted in _INTEGERS.values() else torch.randn(shape).to(wanted)
        if match["name"]:
            named[match["name"]] = made.to(device)
        else:
            positional.append(made.to(device))
    return Inputs(tuple(positional), named)
