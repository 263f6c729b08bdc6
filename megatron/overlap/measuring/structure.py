"""What makes two layers alike: their modules, parameters and types."""

import hashlib

from torch import nn

from overlap_recompute.plan.layer_units import EXPERTS

_DIGITS = 16


def fingerprint_of(layer: nn.Module) -> str:
    """A hash of the names, types and options of all modules, and of the shapes and types of all parameters.

    Options are what a module says of itself (`extra_repr`: strides, groups, dropout rates, ..). Any module will do.
    """
    modules = [f"{path}:{type(module).__name__}({module.extra_repr()})" for path, module in layer.named_modules()]
    parameters = [f"{path}:{tuple(p.shape)}:{p.dtype}:{p.requires_grad}" for path, p in layer.named_parameters()]
    text = "\n".join([*modules, *parameters])
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def parameters_of(layer: nn.Module) -> tuple[int, int]:
    """Elements without routed experts, and of routed experts."""
    sizes = [(f".{EXPERTS}." in f".{path}", p.numel()) for path, p in layer.named_parameters()]
    return sum(size for routed, size in sizes if not routed), sum(size for routed, size in sizes if routed)


def description_of(layer: nn.Module) -> str:
    """For people."""
    dense, routed = parameters_of(layer)
    return f"{type(layer).__name__} of {dense + routed} parameters on a rank"
