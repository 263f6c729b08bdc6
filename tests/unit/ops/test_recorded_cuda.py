"""The CUDA part of the lane on a runtime that only writes down what it is told: what CUDA gets to hear, in order."""

import pathlib
import subprocess

import pytest

from tests.unit.ops.support import compiler

HERE = pathlib.Path(__file__).parent / "recorded_cuda"
SOURCES = HERE.parents[3] / "csrc"
EXPECTED = {
    "waited": [
        "create stream1 priority 0",
        "record event2 on compute",
        "stream1 waits for event2",
        "work on device 1",
        "record event2 on stream1",  # a wait that was enqueued stays right
        "compute waits for event2",
        "compute waits for event2",
        "free argument",  # at once: torch's allocator orders memory by stream
        "synchronize stream1",
        "destroy event2",
    ],
    "abandoned": [
        "work on device 1",
        "record event3 on stream1",
        "error left: 0",  # of asking whether the event has passed
        "free argument",  # when it has, not before
        "synchronize stream1",
        "destroy event3",
    ],
    "failed": [
        "record event4 on stream1",  # what the work did launch may still read the argument
        "raised unit",
        "record event5 on compute",
        "raised cudaEventRecord(event_of(event",
        "synchronize stream1",
        "host waits for event4",
        "destroy event5",
        "destroy event4",
        "free argument",
    ],
    # A lane that is dropped is waited for by nobody; its stream serves the next lane of its device and priority.
    "again": [
        "create stream6 priority 0",
        "create stream7 priority 0",
        "create stream8 priority -5",
        "same stream: 1",
    ],
    "end": ["device 1"],
}
"""All scenes but the first find the stream of the one before; the caller's device is 1, and stays so."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    found = compiler()
    if found is None:
        pytest.skip("no C++ compiler on PATH")
    program = tmp_path_factory.mktemp("recorded_cuda") / "scenes"
    command = [found, "-std=c++17", "-DORC_WITH_CUDA", f"-I{HERE}", f"-I{SOURCES}", "-pthread", "-o", str(program)]
    command += [str(SOURCES / "device/cuda_backend.cpp"), str(SOURCES / "lane/lane.cpp"), str(HERE / "main.cpp")]
    subprocess.run(command, check=True, timeout=300)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True, timeout=60).stdout
    parts = [part.splitlines() for part in output.split("# ")[1:]]
    return {part[0]: part[1:] for part in parts}


@pytest.mark.parametrize("scene", EXPECTED)
def test_what_cuda_is_told(scene: str, scenes: dict[str, list[str]]) -> None:
    assert scenes[scene] == EXPECTED[scene]


def test_no_stream_is_destroyed_and_no_device_mixed_up(scenes: dict[str, list[str]]) -> None:
    """torch's allocator may ask for a stream when it gives back memory that a lane has used, long after the lane."""
    lines = [line for scene in scenes.values() for line in scene]
    assert not [line for line in lines if line.startswith("destroy stream") or "WRONG DEVICE" in line]
