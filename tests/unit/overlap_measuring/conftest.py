"""The CPU platform, and megatron-core's process groups of one rank for every test."""

from collections.abc import Iterator

import pytest

from megatron.pretrain.platform import install_platform

install_platform("gloo")  # before the first import of megatron.core, which the next line causes

from tests.unit.model.support import one_rank  # noqa: E402


@pytest.fixture(autouse=True, scope="package")
def rank() -> Iterator[None]:
    """Groups of one rank."""
    with one_rank():
        yield
