"""Both implementations of what happens for every saved tensor: in C++, and in Python as without the extension."""

import pytest

from overlap_recompute.ops import comparisons
from overlap_recompute.runtime import ambient, hot_paths, rng
from tests.unit.ops.support import needs_extension


@pytest.fixture(params=[pytest.param("extension", marks=needs_extension), "python"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(hot_paths, "extension", None)
        monkeypatch.setattr(ambient, "same_attributes", comparisons.python_same_attributes)
        monkeypatch.setattr(rng, "same_memory", comparisons.python_same_memory)
    return str(request.param)
