"""Which layers have experts, from the text of --moe-layer-freq."""

import ast
import operator
from collections.abc import Callable
from typing import Any

from overlap_recompute.plan.errors import ConfigError

MAX_TEXT = 1000
"""Longest expression, in characters."""

MAX_LAYERS = 100_000
"""Longest pattern: a typing error such as [0]*999999999 must not fill the memory."""


def moe_layer_pattern(text: str, num_layers: int) -> tuple[int, ...]:
    """One 0 (dense) or 1 (experts) per layer: "2" puts experts in layers 0, 2, 4, ...; "[0]*1+[1]*3" spells them out.

    Raises:
        ConfigError: not a positive number and not a list of one 0 or 1 per layer.
    """
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body) if len(text) <= MAX_TEXT else None
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        value = None
    if isinstance(value, int) and value >= 1:
        return tuple(int(layer % value == 0) for layer in range(num_layers))
    if isinstance(value, list) and len(value) == num_layers and all(item in (0, 1) for item in value):
        return tuple(value)
    count = f", a list of {len(value)} items" if isinstance(value, list) else ""
    raise ConfigError(
        f"--moe-layer-freq {text!r}{count}",
        f"a positive number, or a list of {num_layers} zeros and ones for --num-layers {num_layers}",
        'write it as 2 or as "[0]*1+[1]*3"',
    )


def _value(node: ast.expr) -> Any:
    """An int or a list of ints; only constants, lists, + and * are evaluated."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    operations: dict[type, Callable[[Any, Any], Any]] = {ast.Add: operator.add, ast.Mult: operator.mul}
    if isinstance(node, ast.BinOp) and type(node.op) in operations:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Mult) and _length(left) * _length(right) > MAX_LAYERS:
            raise ValueError("too long")
        return operations[type(node.op)](left, right)
    raise ValueError("not a list expression")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else abs(value)
