"""The CPU platform for every test of overlapped recompute, and a rank for those that build a model."""

from collections.abc import Iterator

import pytest

from megatron.pretrain.platform import install_platform

install_platform("gloo")  # before the first import of megatron.core, which the next line causes

from tests.unit.model.support import one_rank  # noqa: E402


@pytest.fixture(scope="module")
def rank() -> Iterator[None]:
    """megatron-core's process groups with one rank, for the tests of one module."""
    with one_rank():
        yield
