"""The CPU platform, and megatron-core's process groups of one rank for every test."""

from collections.abc import Iterator

import pytest

from megatron.pretrain.platform import install_platform

install_platform("gloo")  # before the first import of megatron.core, which the next line causes

from megatron.overlap.counting.model import count  # noqa: E402
from overlap_recompute.plan.counted import CountedModel  # noqa: E402
from tests.unit.model.support import VOCAB, config_of, one_rank  # noqa: E402
from tests.unit.overlap_measuring.support import COUNTED  # noqa: E402


@pytest.fixture(scope="package")
def counted() -> dict[str, CountedModel]:
    """Models by their flags."""
    return {flags: count(config_of(flags), VOCAB) for flags in COUNTED}


@pytest.fixture(autouse=True, scope="package")
def rank(counted: dict[str, CountedModel]) -> Iterator[None]:
    """Groups of one rank; models are counted before, which needs a process without."""
    with one_rank():
        yield
