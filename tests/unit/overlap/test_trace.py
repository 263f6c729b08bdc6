"""Traces: one file per rank that a viewer opens, joined over ranks."""

import json
import logging
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from megatron.overlap import trace as trace_module
from megatron.overlap.session import OverlapSession
from megatron.overlap.trace import LANES, TraceWriter
from megatron.overlap.trace_files import merge_traces, read_trace
from overlap_recompute.ops import event_ring
from overlap_recompute.plan.errors import ConfigError, DataError
from tests.unit.overlap.support import forward_backward, model_of, session_of, settings_of

ROOT = pathlib.Path(__file__).parents[3]


def spans(events: list[dict[str, Any]], lane: str) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == "X" and event["tid"] == LANES.index(lane)]


def test_a_step_in_the_trace(rank: None, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "new" / "traces"
    chunks = model_of()
    with session_of(chunks, settings_of("all:linear_fc1+activation", trace_folder=folder)) as session:
        forward_backward(session, chunks[0], microbatches=2)
        forward_backward(session, chunks[0])
        assert not (folder / "rank-00000.json").exists(), "it is complete at the end"
    assert [path.name for path in folder.iterdir()] == ["rank-00000.json"]
    events = json.loads((folder / "rank-00000.json").read_text())
    assert [event["name"] for event in spans(events, "schedule")] == ["0F0", "0B0", "0F1", "0B1", "0F0", "0B0"]
    replays = spans(events, "exposed")
    units = {f"L{layer}.{unit}" for layer in (0, 1) for unit in ("linear_fc1", "activation")}
    assert {event["name"] for event in replays} == {f"R({unit}) 0.{number}" for unit in units for number in (0, 1)}
    backward = spans(events, "schedule")[1]
    ends = [event["ts"] + event["dur"] for event in replays]
    assert len([end for end in ends if backward["ts"] <= end <= backward["ts"] + backward["dur"]]) == 4
    assert {event["args"]["name"] for event in events if event["name"] == "thread_name"} == set(LANES)


def write(folder: pathlib.Path, rank: int, names: tuple[str, ...]) -> pathlib.Path:
    writer = TraceWriter(folder, rank, f"rank {rank}")
    for number, name in enumerate(names):
        writer.span("schedule", name, 1_000_000 * number, 1_000_000 * number + 500_000)
    writer.close()
    return writer.path


def test_traces_of_ranks_are_joined(tmp_path: pathlib.Path) -> None:
    paths = [write(tmp_path, rank, ("0F0", "0B0")) for rank in (0, 1)]
    output = tmp_path / "all.json"
    tool = [sys.executable, str(ROOT / "tools" / "merge_traces.py"), str(tmp_path), "--output", str(output)]
    result = subprocess.run(tool, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    events = json.loads(output.read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1}
    times = sorted(event["ts"] for event in events if event["ph"] == "X")
    assert times[0] == 0 and len(times) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json", *(path.name for path in paths)]
    assert merge_traces([output], tmp_path / "again.json") == len(events), "the joined file is a trace as well"


def test_what_a_killed_rank_left_can_be_read(tmp_path: pathlib.Path) -> None:
    text = write(tmp_path, 0, ("0F0", "0F1", "0F2")).read_text()
    cut = tmp_path / "cut.json"
    cut.write_text(text[: text.index('"0F2"') + 3])
    assert [event["name"] for event in read_trace(cut) if event["ph"] == "X"] == ["0F0", "0F1"]


def test_what_is_no_trace_is_refused(tmp_path: pathlib.Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("[1, 2]")
    for path in (other, tmp_path / "absent.json"):
        with pytest.raises(DataError, match="which is no trace"):
            merge_traces([path], tmp_path / "all.json")
    tool = [sys.executable, str(ROOT / "tools" / "merge_traces.py"), str(other), "--output", str(tmp_path / "all.json")]
    result = subprocess.run(tool, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert result.returncode == 2
    assert "which is no trace" in result.stderr
    assert not (tmp_path / "all.json").exists()


def test_a_trace_ends_before_it_is_too_large(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trace_module, "MOST_SPANS", 2)
    with caplog.at_level(logging.WARNING):
        path = write(tmp_path, 0, ("0F0", "0F1", "0F2", "0F3"))
    assert [event["name"] for event in read_trace(path) if event["ph"] == "X"] == ["0F0", "0F1"]
    assert caplog.text.count("ends here") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_ends_the_trace_and_not_the_run(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = TraceWriter(tmp_path, 0, "rank 0")
    writer._stream.close()
    writer._stream = open("/dev/full", "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            writer.span("schedule", "0F0" * 10_000, number, number + 1)
        writer.close()
    assert caplog.text.count("ends early") == 1
    assert read_trace(writer.path), "what was written before"


def test_a_folder_that_cannot_be_made_is_refused(rank: None, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    settings = settings_of("all", trace_folder=tmp_path / "file" / "traces")
    with pytest.raises(ConfigError, match="--overlap-recompute-trace .*, which cannot be written"):
        OverlapSession(settings, model_of())


class FailedDevice:
    """A ring whose marks cannot be read any more when its device has failed."""

    def __init__(self) -> None:
        self._ring, self.has_failed = event_ring(), False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ring, name)

    def drain(self) -> Any:
        if self.has_failed:
            raise RuntimeError("cudaEventQuery: an illegal memory access was encountered")
        return self._ring.drain()


def test_a_device_that_fails_hides_no_error_and_leaves_the_trace_of_the_steps_before(
    rank: None, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    ring, chunks = FailedDevice(), model_of()

    def fail() -> None:
        with OverlapSession(settings_of("all:linear_fc1", trace_folder=tmp_path), chunks, None, ring) as session:
            forward_backward(session, chunks[0], microbatches=1)
            ring.has_failed = True
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), caplog.at_level(logging.WARNING):
        fail()
    assert "illegal memory access" in caplog.text
    assert [event for event in json.loads((tmp_path / "rank-00000.json").read_text()) if event["ph"] == "X"]
