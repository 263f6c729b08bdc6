"""A metrics file is right after any stop and any resume, and never eats what is not its own."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron.pretrain.logs.metrics_file import MetricsFileSink, open_metrics_file, superseded_path
from megatron.pretrain.logs.metrics_reader import read_metrics
from overlap_recompute.plan.errors import ConfigError, DataError
from tests.unit.logs.samples import EVALUATION, EVENT, FACTS, iteration


def run(path: Path, start: int, *iterations: int, loss: float = 5.0) -> MetricsFileSink:
    """Log some iterations and leave the file open, as a run does that is killed."""
    sink = open_metrics_file(path, replace(FACTS, start_iteration=start))
    for number in iterations:
        sink.write(iteration(number, loss=loss))
    return sink


def losses(path: Path) -> list[tuple[int, float | None]]:
    return [(record.iteration, record.loss) for record in read_metrics(path).iterations]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.jsonl"


def test_lines_can_be_read_while_the_run_goes_on(path: Path) -> None:
    run(path, 0, 1, 2)
    assert losses(path) == [(1, 5.0), (2, 5.0)]
    assert losses(path.parent) == losses(path)


def test_the_file_is_one_json_object_a_line(path: Path) -> None:
    sink = run(path, 0, 1)
    sink.write(EVALUATION)
    sink.write(EVENT)
    sink.close()
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    assert kinds == ["run", "iteration", "evaluation", "event"]
    metrics = read_metrics(path)
    assert (metrics.evaluations, metrics.events, metrics.runs) == ((EVALUATION,), (EVENT,), (FACTS,))


def test_losses_of_routers_are_in_the_file_and_files_without_them_can_be_read(path: Path) -> None:
    sink = run(path, 0, 1)
    sink.write(iteration(2, auxiliary_losses={"load_balancing_loss": 1.5}))
    sink.close()
    path.write_text(path.read_text().replace('"auxiliary_losses":{},', ""))
    found = [record.auxiliary_losses for record in read_metrics(path).iterations]
    assert found == [{}, {"load_balancing_loss": 1.5}]


def test_a_resume_takes_out_what_will_be_done_again(path: Path) -> None:
    run(path, 0, 2, 4, 6, 8)
    run(path, 4, 6, 8, loss=3.0)
    assert losses(path) == [(2, 5.0), (4, 5.0), (6, 3.0), (8, 3.0)]
    plain = [json.loads(line) for line in path.read_text().splitlines()]
    assert [value["iteration"] for value in plain if value["kind"] == "iteration"] == [2, 4, 6, 8]
    assert [facts.start_iteration for facts in read_metrics(path).runs] == [0, 4]
    moved = [json.loads(line)["iteration"] for line in superseded_path(path).read_text().splitlines()]
    assert moved == [6, 8]


def test_a_resume_keeps_evaluations_and_events_of_its_iteration(path: Path) -> None:
    sink = run(path, 0, 10)
    sink.write(EVALUATION)
    sink.write(EVENT)
    sink.write(replace(EVENT, iteration=11))
    run(path, 10)
    metrics = read_metrics(path)
    assert (metrics.evaluations, metrics.events) == ((EVALUATION,), (EVENT,))


def test_a_second_resume_from_an_earlier_checkpoint_forgets_the_first(path: Path) -> None:
    run(path, 0, 1, 2, 3, 4)
    run(path, 3, 4, 5, loss=3.0)
    run(path, 2, 3, loss=2.0)
    assert losses(path) == [(1, 5.0), (2, 5.0), (3, 2.0)]
    assert [facts.start_iteration for facts in read_metrics(path).runs] == [0, 2]


def test_a_new_run_begins_a_new_file(path: Path) -> None:
    run(path, 0, 1, 2)
    run(path, 0, 1, loss=4.0)
    assert losses(path) == [(1, 4.0)]
    assert len(read_metrics(path).runs) == 1
    assert len(superseded_path(path).read_text().splitlines()) == 3


def test_a_kill_inside_any_line_costs_that_line_only(path: Path) -> None:
    run(path, 0, 1)
    whole_bytes = path.stat().st_size
    run(path, 1, 2)
    content = path.read_bytes()
    for length in (*range(whole_bytes, len(content), 29), len(content) - 1):
        path.write_bytes(content[:length])
        assert losses(path)[0] == (1, 5.0)
        run(path, 1, 2, loss=3.0)
        assert losses(path) == [(1, 5.0), (2, 3.0)]


def test_a_kill_inside_the_first_line_costs_nothing(path: Path) -> None:
    run(path, 0)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match="line 1 of .*does not describe a run"):
        read_metrics(path)
    run(path, 0, 1)
    assert losses(path) == [(1, 5.0)]


def test_a_damaged_line_stops_a_reader_but_not_a_resume(path: Path) -> None:
    run(path, 0, 1, 2)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0\0\0\n", *lines[2:]]))
    with pytest.raises(DataError, match=r"line 3 of .*metrics\.jsonl: not JSON"):
        read_metrics(path)
    run(path, 2, 3)
    assert [number for number, _ in losses(path)] == [1, 2, 3]
    assert superseded_path(path).read_bytes() == b"\0\0\0\n"


@pytest.mark.parametrize("content", [b"precious text\n", b'{"kind":"run","schema":"pretrain-metrics/9"}\n'])
def test_a_file_of_another_kind_is_left_alone(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="first line is not that of a metrics file"):
        open_metrics_file(path, FACTS)
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_written_is_an_error_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="metrics file .* cannot be written"):
        open_metrics_file(tmp_path / "file" / "metrics.jsonl", FACTS)


HOLDER = """
import fcntl, sys, time
stream = open(sys.argv[1], "ab")
fcntl.lockf(stream, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""
PROBE = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'ab'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def is_free(lock: Path) -> bool:
    """Whether another process gets the lock."""
    return subprocess.run([sys.executable, "-c", PROBE, lock], capture_output=True, check=False).returncode == 0


def test_a_second_run_is_refused_and_leaves_the_lines_alone_until_the_first_is_gone(path: Path) -> None:
    run(path, 0, 1, 2, 3).close()
    before = path.read_bytes()
    other_name = path.with_name("link.jsonl")
    other_name.symlink_to(path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path.with_name(".metrics.jsonl.lock")], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            for name in (path, other_name):
                with pytest.raises(ConfigError, match="another run that writes to the metrics file .*--metrics-file"):
                    open_metrics_file(name, replace(FACTS, start_iteration=1), wait_s=0.1)
            assert path.read_bytes() == before
        finally:
            other.kill()
    run(path, 2, 3).close()
    assert losses(path) == [(1, 5.0), (2, 5.0), (3, 5.0)]


def test_the_lock_is_held_as_long_as_the_file_is_open(path: Path) -> None:
    sink = run(path, 0, 1)
    lock = path.with_name(".metrics.jsonl.lock")
    assert not is_free(lock)
    sink.close()
    assert is_free(lock)


def test_a_file_that_is_refused_is_not_locked(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious text\n")
    with pytest.raises(ConfigError, match="first line"):
        open_metrics_file(path, FACTS)
    assert is_free(path.with_name(".metrics.jsonl.lock"))


def test_a_pipe_and_a_device_are_written_to_and_neither_read_nor_locked() -> None:
    reading, writing = os.pipe()
    for name in (f"/proc/self/fd/{writing}", "/dev/null"):
        sink = run(Path(name), 0, 1)
        sink.close()
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        assert [json.loads(line)["kind"] for line in stream] == ["run", "iteration"]
    assert not Path("/dev/.null.lock").exists()


def test_a_full_disk_costs_lines_but_never_half_a_line(path: Path) -> None:
    sink = run(path, 0, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, hard))  # room for half a line
    try:
        with pytest.raises(OSError, match="no room|too large"):
            sink.write(iteration(2))
        cut_off = path.read_bytes()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert cut_off.endswith(b"}\n")
    sink.write(iteration(3, loss=5.0))
    sink.close()
    assert losses(path) == [(1, 5.0), (3, 5.0)]


def test_time_is_summed_over_intervals_and_starts(path: Path) -> None:
    now_s = [100.0]
    first = open_metrics_file(path, FACTS, lambda: now_s[0])
    now_s[0] += 7.0
    first.write(iteration(10, elapsed_ms=500.0))
    now_s[0] += 50.0
    first.write(iteration(20, elapsed_ms=500.0))  # lost: the run goes on from 10
    second = open_metrics_file(path, replace(FACTS, start_iteration=10), lambda: now_s[0])
    now_s[0] += 3.0
    second.write(iteration(15, elapsed_ms=400.0))
    metrics = read_metrics(path)
    assert metrics.training_s == pytest.approx(10 * 0.5 + 5 * 0.4)
    assert metrics.wall_s == pytest.approx(7.0 + 3.0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable metrics file at .*metrics.jsonl"):
        read_metrics(tmp_path)
