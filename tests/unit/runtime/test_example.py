"""The example in `examples/` runs, and its three arms agree."""

import importlib.util
import pathlib

import pytest

from tests.unit.runtime.support import never

EXAMPLE = pathlib.Path(__file__).resolve().parents[3] / "examples" / "recompute_residual_cnn.py"


def test_the_residual_cnn_prints_three_arms_of_the_same_bits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("recompute_residual_cnn", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    for name, value in {"STEPS": 2, "SIZE": 16, "CHANNELS": 8, "BLOCKS": 2, "BATCH": 3}.items():
        monkeypatch.setattr(example, name, value)
    # A communication that lasts as long as there is something to recompute: no timing decides the outcome.
    monkeypatch.setattr(example, "communicate", lambda fill: fill(never) if fill is not None else None)
    example.main()
    rows = {line[:11].strip(): line[11:].split() for line in capsys.readouterr().out.splitlines()[-3:]}
    assert [row[-1] for row in rows.values()] == ["yes"] * 3
    assert [rows[arm][2:4] for arm in ("none", "on demand", "overlapped")] == [["0", "0"], ["0", "20"], ["20", "0"]]
    assert float(rows["on demand"][0]) == float(rows["overlapped"][0]) <= float(rows["none"][0])
