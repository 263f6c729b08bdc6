"""Following a metrics file that grows, is replaced, is cut, and holds what nobody should have written."""

import os
from pathlib import Path

import pytest

from overlap_recompute.cli.watching import follow
from overlap_recompute.cli.watching.drawing import ASCII, UNICODE
from overlap_recompute.cli.watching.follow import Follower, News
from overlap_recompute.cli.watching.frame import draw
from overlap_recompute.cli.watching.history import History, Standing
from overlap_recompute.cli.watching.lines import OtherSchema, Sample, Start, Unreadable, read_line
from overlap_recompute.plan.errors import DataError
from tests.unit.cli.watch_support import event_line, glance_of, run_line, sample_line


def test_only_whole_lines_are_taken_once(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with Follower(path) as follower:
        assert follower.look() == News(exists=False)
        path.write_bytes(b"one\ntw")
        assert follower.look().lines == (b"one",)
        assert follower.look().lines == ()
        with path.open("ab") as stream:
            stream.write(b"o\nthree\n")
        assert follower.look().lines == (b"two", b"three")


def test_half_a_line_that_is_cut_off_again_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one\nhalf")
    with Follower(path) as follower:
        follower.look()
        os.truncate(path, 4)
        with path.open("ab") as stream:
            stream.write(b"whole\n")
        news = follower.look()
    assert (news.lines, news.restarted) == ((b"whole",), False)


@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "cut"])
def test_another_file_is_read_from_its_start(tmp_path: Path, replaced: bool) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one\ntwo\nthree\n")
    with Follower(path) as follower:
        follower.look()
        if replaced:
            (tmp_path / "new").write_bytes(b"one\ntwo\nthree\nfour\n")
            os.replace(tmp_path / "new", path)
        else:
            path.write_bytes(b"new\n")
        news = follower.look()
        assert news.restarted
        assert news.lines == ((b"one", b"two", b"three", b"four") if replaced else (b"new",))
        assert follower.look() == News(changed_s=path.stat().st_mtime)
        path.unlink()
        assert follower.look() == News(exists=False, restarted=True)


def test_a_line_without_end_is_left_out_and_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "CHUNK_BYTES", 8)
    monkeypatch.setattr(follow, "LONGEST_LINE_BYTES", 32)
    path = tmp_path / "f"
    path.write_bytes(b"one\n" + b"x" * 200)
    with Follower(path) as follower:
        news = follower.look()
        assert (news.lines, news.too_long) == ((b"one",), 1)
        with path.open("ab") as stream:
            stream.write(b"xxx\ntwo\n")
        news = follower.look()
    assert (news.lines, news.too_long) == ((b"two",), 0)


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b'{"kind": 3}', b'{"kind": "iteration"}', b"[" * 100_000]
    + [b'{"kind": "iteration", "iteration": "nan"}', b'{"kind": "iteration", "iteration": ' + b"9" * 5000 + b"}"],
    ids=lambda line: line[:30].decode(errors="replace"),
)
def test_a_malformed_line_is_told_from_a_record(line: bytes) -> None:
    with pytest.raises(Unreadable):
        read_line(line)


def test_figures_of_the_wrong_type_are_left_out_and_text_numbers_are_read() -> None:
    line = sample_line(
        3, loss="nan", grad_norm=None, tokens_per_s="fast", elapsed_ms="inf", extra={"a": "-inf", "b": []}
    )
    sample = read_line(line)
    assert isinstance(sample, Sample)
    assert sample.loss != sample.loss
    assert (sample.grad_norm, sample.tokens_per_s, sample.elapsed_ms) == (None, None, float("inf"))
    assert sample.extra["a"] == float("-inf")
    assert "b" not in sample.extra
    assert read_line(b'{"kind": "of a later version"}') is None
    assert isinstance(read_line(run_line(layout=None, world_size=True)), Start)
    with pytest.raises(OtherSchema, match="pretrain-metrics/2"):
        read_line(run_line(schema="pretrain-metrics/2"))


def test_figures_beyond_all_bounds_do_not_end_the_watch() -> None:
    """Sums and differences of such figures are no numbers any more."""
    huge = {"loss": 1e308, "elapsed_ms": 1e308, "train_iters": 10**300, "peak_memory_max_bytes": 1e300}
    lines = (run_line(), sample_line(1, **huge), sample_line(2, **{**huge, "loss": -1e308}), sample_line(3))
    history = History("a", stall_factor=10.0, now_s=0.0)
    history.take(News(lines=lines, changed_s=0.0), now_s=0.0, wall_s=0.0)
    glance = history.glance(now_s=1.0)
    assert [sample.loss for sample in glance.samples[:2]] == [float("inf"), float("-inf")]
    assert glance.samples[0].train_iters is None
    for charset in (UNICODE, ASCII):
        assert draw("a", glance, (), window=2, width=80, charset=charset)
    with pytest.raises(Unreadable):
        read_line(sample_line(10**300))


@pytest.mark.parametrize("lines", [[b"not metrics"], [sample_line(1)], [run_line(schema="other/1")]])
def test_a_file_that_is_no_metrics_file_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(DataError, match=r"found the file runs/a, whose .*; expected a metrics file"):
        glance_of(lines)


def test_how_a_run_stands() -> None:
    running = [run_line(), sample_line(1), sample_line(2)]
    assert glance_of([]).standing is Standing.NO_FILE
    assert glance_of([run_line()], age_s=1e6).standing is Standing.STARTING
    assert glance_of(running).standing is Standing.RUNNING
    assert glance_of(running, age_s=4.9).standing is Standing.RUNNING  # 10 x 0.4 s is below the least of 5 s
    assert glance_of(running, age_s=5.1).standing is Standing.STALLED
    assert glance_of(running, age_s=5.1, stall_factor=20).standing is Standing.RUNNING
    assert glance_of([run_line(), sample_line(100)], age_s=1e6).standing is Standing.DONE
    stopped = [*running, event_line(2, "exit", "exit-duration reached")]
    assert glance_of(stopped, age_s=1e6).standing is Standing.STOPPED
    assert glance_of([*stopped, run_line(2)]).standing is Standing.STARTING
    assert glance_of([*stopped, run_line(2), sample_line(3)]).standing is Standing.RUNNING


def test_what_is_due_counts_the_log_interval_and_not_what_came_before_a_resume() -> None:
    assert glance_of([run_line(), *(sample_line(n) for n in range(10, 50, 10))]).due_s == pytest.approx(4.0)
    assert glance_of([run_line(1000), sample_line(1010, train_iters=5000)]).due_s == pytest.approx(4.0)


def test_an_old_file_is_as_old_as_its_time_stamp_and_a_new_line_makes_it_young() -> None:
    history = History("f", stall_factor=10, now_s=0.0)
    history.take(News(lines=(run_line(), sample_line(1)), changed_s=100.0), now_s=50.0, wall_s=400.0)
    assert history.glance(now_s=50.0).age_s == pytest.approx(300.0)
    history.take(News(lines=(sample_line(2),), changed_s=100.0), now_s=51.0, wall_s=401.0)
    assert history.glance(now_s=53.0).age_s == pytest.approx(2.0)


def test_a_replaced_file_makes_the_old_figures_void() -> None:
    history = History("f", stall_factor=10, now_s=0.0)
    history.take(News(lines=(run_line(), sample_line(7), b"?")), now_s=0.0, wall_s=0.0)
    assert history.glance(now_s=0.0).unreadable == 1
    history.take(News(lines=(run_line(),), restarted=True), now_s=1.0, wall_s=1.0)
    glance = history.glance(now_s=1.0)
    assert (glance.samples, glance.unreadable, glance.standing) == ((), 0, Standing.STARTING)
