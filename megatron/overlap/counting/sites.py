"""Stands in for the runtime when the adapters name the units of a model: hands their calls to a census."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from megatron.overlap.replacements import Replacements
from overlap_recompute.plan.layer_units import kind_of
from overlap_recompute.runtime.census import OUTSIDE, Census
from overlap_recompute.runtime.live_bytes import LiveBytes

Result = TypeVar("Result")
HEAD = -2
"""The part behind the last layer."""


class CountedSites:
    """Tells the census which layer and unit runs, and takes peaks of each layer's backward pass."""

    def __init__(self, census: Census, live: LiveBytes, replacements: Replacements) -> None:
        self.layers: dict[int, nn.Module] = {}
        """By index in the model."""
        self.besides_bytes: dict[int, int] = {}
        """By part: most that its backward pass held besides what is kept."""
        self.live_peaks: dict[int, int] = {}
        """By part: most that lived in its backward pass, kept storages included."""
        self.boundary_bytes = 0
        """Of what a layer returns."""
        self._census, self._live, self._replacements = census, live, replacements
        self._behind = HEAD

    def attach_unit(self, module: nn.Module, unit: str, layer: int) -> None:
        """Watch a module."""
        self._replacements.set(module, "forward", partial(self.run, unit, layer, module.forward))

    def declare(self, unit: str, layer: int) -> None:
        """`run` watches it; nothing to prepare."""

    def run(self, unit: str, layer: int, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call a unit; experts go by the names that policies use."""
        return self._census.call(kind_of(unit), function, *args, **kwargs)

    def attach_layer(self, module: nn.Module, layer: int) -> None:
        """Follow a layer's two passes."""
        forward = module.forward
        self.layers[layer] = module

        def followed(*args: Any, **options: Any) -> Any:
            hidden = options.get("hidden_states", args[0] if args else None)
            if self._census.part == OUTSIDE and isinstance(hidden, Tensor):
                hidden.register_hook(lambda gradient: self._begin(OUTSIDE, gradient))
            self._census.part = layer
            output = forward(*args, **options)
            result = output[0] if isinstance(output, tuple) else output
            result.register_hook(lambda gradient: self._begin(layer, gradient))
            self.boundary_bytes = result.untyped_storage().nbytes()
            self._census.part = HEAD
            return output

        self._replacements.set(module, "forward", followed)

    def begin_backward(self) -> None:
        """The head's backward pass begins."""
        self._behind = HEAD
        self._live.start_span()

    def end_backward(self) -> None:
        """The embedding's has ended."""
        self._end()

    def _begin(self, part: int, gradient: Tensor) -> None:
        """The gradient of a part's output is there."""
        self._end()
        self._behind = part
        self._live.start_span()
        self._census.steps.begin(part, gradient)

    def _end(self) -> None:
        self.besides_bytes[self._behind] = self._live.besides_peak_bytes
        self.live_peaks[self._behind] = self._live.peak_bytes
