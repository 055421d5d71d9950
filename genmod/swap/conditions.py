"""Why a module must be left alone, whatever pattern it fits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as globals_of_modules
from torch.nn.parameter import Buffer, Parameter

from genmod.swap.classes import class_of

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN_TENSORS = (Tensor, Parameter, Buffer)


def opaque(module: nn.Module) -> str:
    """Why nothing in and under `module` may be touched; an empty string where it may."""
    if isinstance(module, torch.jit.ScriptModule):
        return "a ScriptModule: its code is fixed"
    if isinstance(module, torch.fx.GraphModule):
        return "a GraphModule: its code is generated"
    if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
        return "compiled already: accelerate before torch.compile"
    if "quantized" in type(module).__module__.split("."):
        return "quantised"
    return ""


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of `module` itself, those beneath parametrisations too."""
    own = list(module.parameters(recurse=False)) + list(module.buffers(recurse=False))
    parametrizations = getattr(module, "parametrizations", None)
    return own + (list(parametrizations.parameters()) if isinstance(parametrizations, nn.Module) else [])


def unfit(module: nn.Module) -> str:
    """Why the tensors of `module` are none that genmod computes with; an empty string where they are."""
    for tensor in tensors_of(module):
        if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
            return "its parameters are not initialised yet"
        if tensor.is_meta:
            return "on the meta device: there are no values to check or fold"
        if tensor.is_quantized:
            return "quantised"
        if tensor.layout is not torch.strided:
            return f"sparse: layout {str(tensor.layout).removeprefix('torch.')}"
        if type(tensor) not in _PLAIN_TENSORS:
            return f"its parameters are {type(tensor).__name__}s"
        if tensor.is_complex():
            return "complex"
    return ""


def overridden(module: nn.Module, classes: tuple[type, ...]) -> str:
    """Why `module`, an instance of one of `classes`, may compute something else than they do."""
    found = class_of(module)
    if found not in classes:
        return f"what the forward of {found.__name__} computes is not known"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    return ""


def hooked(*modules: nn.Module) -> str:
    """Which hooks would not be called if the modules were not called."""
    if any(getattr(globals_of_modules, f"_global{name}") for name in _HOOKS):
        return "there are hooks on all modules"
    for module in modules:
        if any(getattr(module, name) for name in _HOOKS):
            return f"there are hooks on its {class_of(module).__name__}"
    return ""
