"""The rules that find the first cause, with a clock of our own."""

import pytest

from megatron.pretrain.distributed.judge import Judge, OwnGaps
from megatron.pretrain.distributed.verdict import Cause, Verdict

TIMEOUT_S = 30.0
SETTLE_S = 2.0


@pytest.fixture
def judge() -> Judge:
    return Judge(world_size=3, timeout_s=TIMEOUT_S, settle_s=SETTLE_S, now_s=0.0)


def run_until(judge: Judge, end_s: float, *, speaking: tuple[int, ...], start_s: float = 0.0) -> None:
    """Tick every second; the ranks in `speaking` are heard every five."""
    for second in range(int(start_s) + 1, int(end_s) + 1):
        for rank in speaking if second % 5 == 0 else ():
            judge.heard(rank, float(second))
        judge.tick(float(second))


def found(judge: Judge) -> tuple[int, Cause]:
    assert judge.verdict is not None
    return judge.verdict.rank, judge.verdict.cause


def test_a_closed_connection_decides_at_once(judge: Judge) -> None:
    judge.placed(2, "pipeline stage 1, host n1")
    judge.ended(2)
    assert found(judge) == (2, Cause.DIED)
    assert judge.verdict is not None
    assert "pipeline stage 1, host n1" in judge.verdict.sentence()


def test_a_closed_connection_after_goodbye_is_fine(judge: Judge) -> None:
    judge.left(2)
    judge.ended(2)
    run_until(judge, 100, speaking=(0, 1))
    assert judge.verdict is None


def test_the_first_cause_stays(judge: Judge) -> None:
    judge.failed(1, Cause.FAILED, "ValueError: boom", echo=False, now_s=1.0)
    judge.ended(1)
    judge.ended(0)
    assert found(judge) == (1, Cause.FAILED)


def test_an_echo_waits_for_the_cause(judge: Judge) -> None:
    judge.failed(1, Cause.FAILED, "RuntimeError: gloo", echo=True, now_s=1.0)
    judge.ended(1)  # it may even leave before the cause is known
    judge.tick(1.5)
    assert judge.verdict is None
    judge.ended(2)
    assert found(judge) == (2, Cause.DIED)


def test_an_echo_without_a_cause_is_the_verdict_and_tells_who_did_not_report(judge: Judge) -> None:
    judge.failed(1, Cause.FAILED, "RuntimeError: timed out", echo=True, now_s=1.0)
    judge.failed(0, Cause.FAILED, "RuntimeError: timed out", echo=True, now_s=1.2)
    judge.tick(1.0 + SETTLE_S)
    assert found(judge) == (1, Cause.FAILED)
    assert judge.verdict is not None
    assert "rank(s) 2" in judge.verdict.detail


def test_a_silent_rank_is_found_after_the_timeout_and_not_before(judge: Judge) -> None:
    run_until(judge, TIMEOUT_S, speaking=(0, 2))
    assert judge.verdict is None
    run_until(judge, TIMEOUT_S + 1, speaking=(0, 2), start_s=TIMEOUT_S)
    assert found(judge) == (1, Cause.SILENT)


def test_a_quiet_rank_may_be_silent_but_may_not_die(judge: Judge) -> None:
    judge.quiet(1, True, 0.0)
    run_until(judge, 200, speaking=(0, 2))
    assert judge.verdict is None
    judge.ended(1)
    assert found(judge) == (1, Cause.DIED)


def test_quiet_ends(judge: Judge) -> None:
    judge.quiet(1, True, 0.0)
    run_until(judge, 100, speaking=(0, 2))
    judge.quiet(1, False, 100.0)
    run_until(judge, 140, speaking=(0, 2), start_s=100)
    assert found(judge) == (1, Cause.SILENT)


def test_a_judge_that_stood_still_blames_nobody(judge: Judge) -> None:
    judge.tick(1.0)
    judge.tick(500.0)  # a suspended job goes on
    assert judge.verdict is None
    run_until(judge, 500 + 2 * TIMEOUT_S, speaking=(0, 1), start_s=500)
    assert found(judge) == (2, Cause.SILENT)


def test_all_finished_counts_each_rank_once(judge: Judge) -> None:
    for rank in (0, 0, 1):
        judge.finished(rank)
    assert not judge.all_finished
    judge.finished(2)
    assert judge.all_finished


def test_own_gaps() -> None:
    gaps = OwnGaps(10.0, 0.0)
    assert [gaps.after_gap(now_s) for now_s in (1.0, 6.0, 11.5, 12.0)] == [False, False, True, False]


def test_a_verdict_survives_the_wire() -> None:
    verdict = Verdict(rank=2, place="host n1", cause=Cause.INTERRUPTED, detail="Ctrl-C")
    assert Verdict.from_message(dict(verdict.to_message())) == verdict
