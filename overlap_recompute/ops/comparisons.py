"""Comparisons that the runtime makes before every unit: in C++, or in Python without the extension."""

import ctypes
from collections.abc import Callable
from typing import Any

from overlap_recompute.ops.native import extension

_memcmp = ctypes.PyDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def python_same_attributes(objects: tuple[Any, ...], name: str, values: tuple[Any, ...]) -> bool:
    """Whether the attribute `name` of each object equals its value."""
    for each, value in zip(objects, values, strict=True):  # noqa: SIM110 - a generator takes twice as long
        if getattr(each, name) != value:
            return False
    return True


def python_same_memory(first: int, second: int, nbytes: int) -> bool:
    """Whether the bytes at two addresses are equal."""
    return not _memcmp(first, second, nbytes)


same_attributes: Callable[[tuple[Any, ...], str, tuple[Any, ...]], bool] = (
    python_same_attributes if extension is None else extension.same_attributes
)
"""`python_same_attributes`, faster."""
same_memory: Callable[[int, int, int], bool] = python_same_memory if extension is None else extension.same_memory
"""`python_same_memory`, faster."""
