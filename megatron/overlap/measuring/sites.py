"""Where marks are set: stands in for the runtime when the adapters name the units of a model."""

import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from megatron.overlap.measuring.counted_probe import CountedProbe
from megatron.overlap.measuring.marks import At, Marks
from megatron.overlap.measuring.probe import Probe
from megatron.overlap.replacements import Replacements

Result = TypeVar("Result")
SUMMED = "pre_mlp_layernorm"
"""The unit that takes the sum behind attention."""


class MeasuredSites:
    """Times the calls of units and layers in both passes; drops nothing, keeps nothing."""

    def __init__(self, marks: Marks, probe: Probe | CountedProbe, replacements: Replacements) -> None:
        self._marks, self._probe, self._replacements = marks, probe, replacements
        self.layers: dict[int, nn.Module] = {}
        """By index in the model."""
        self._output: weakref.ref[Tensor] | None = None
        """What the layer before returned: its gradient is followed already."""

    def attach_unit(self, module: nn.Module, unit: str, layer: int) -> None:
        """Time a module."""
        forward = module.forward
        self._replacements.set(module, "forward", partial(self.run, unit, layer, forward))

    def declare(self, unit: str, layer: int) -> None:
        """`run` times it; nothing to prepare."""

    def run(self, unit: str, layer: int, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call a unit between two marks, and follow its gradients."""
        marks = self._marks
        if not marks.active or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        output = self._call(unit, layer, function, args, kwargs)
        if unit == SUMMED:
            self._follow(args, At.GRAD_SUM, unit, layer)
        self._follow(output, At.GRAD_UNIT, unit, layer)
        return output

    def attach_layer(self, module: nn.Module, layer: int) -> None:
        """Mark the two ends of a layer's forward pass, and the gradients of what it takes and returns."""
        forward = module.forward
        self.layers[layer] = module

        def marked(*args: Any, **options: Any) -> Any:
            marks = self._marks
            if not marks.active or not torch.is_grad_enabled():
                return forward(*args, **options)
            hidden = options.get("hidden_states", args[0] if args else None)
            if self._output is None or self._output() is not hidden:
                self._follow(hidden, At.GRAD_INPUT, "", layer)
            self._probe.layer(layer)
            marks.add(At.LAYER, "", layer)
            output = forward(*args, **options)
            marks.add(At.LAYER_END, "", layer)
            self._probe.layer(None)
            result = output[0] if isinstance(output, tuple) else output
            self._follow(result, At.GRAD_LAYER, "", layer)
            self._output = weakref.ref(result)
            return output

        self._replacements.set(module, "forward", marked)

    def _call(
        self, unit: str, layer: int, function: Callable[..., Result], args: tuple[Any, ...], options: dict[str, Any]
    ) -> Result:
        if self._probe.active:
            return self._probe.call(unit, layer, function, args, options)
        self._marks.add(At.UNIT, unit, layer)
        output = function(*args, **options)
        self._marks.add(At.UNIT_END, unit, layer)
        return output

    def _follow(self, value: Any, at: At, unit: str, layer: int) -> None:
        for tensor in tensors_of(value):
            if tensor.requires_grad:
                tensor.register_hook(partial(self._mark_gradient, at, unit, layer))

    def _mark_gradient(self, at: At, unit: str, layer: int, gradient: Tensor) -> None:
        if self._marks.active:
            self._marks.add(at, unit, layer)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in a value: itself, or those in tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(value, dict):
        yield from tensors_of(tuple(value.values()))
