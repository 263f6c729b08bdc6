"""A run's traces on the page: the steps found, the spans of a typical one, the table, and what is refused."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from overlap_recompute.cli.main import main
from overlap_recompute.plan.codec import write_record
from overlap_recompute.plan.digest import plan_digest
from overlap_recompute.plan.errors import DataError
from overlap_recompute.plan.validation import read_plan
from overlap_recompute.report import Measured, compared, measured_of, read_traces, render, traces
from overlap_recompute.report.passes import blocks_of
from tests.unit.plan.samples import sample_plan, sample_profile
from tests.unit.report.run_traces import write_run
from tests.unit.report.samples import sample_report

GIB = 1 << 30
PROFILE = sample_profile()
PLAN = dataclasses.replace(sample_plan(PROFILE), budget_bytes=4 * GIB)


def _measured(folder: pathlib.Path) -> Measured:
    return measured_of(read_traces(folder), "the trace")


def test_the_digest_is_that_of_the_content(tmp_path: pathlib.Path) -> None:
    digest = plan_digest(PLAN)
    assert plan_digest(dataclasses.replace(PLAN, created="2027-01-01")) == digest
    assert plan_digest(dataclasses.replace(PLAN, predicted_iteration_us=6000)) == digest, "whole numbers are floats"
    assert plan_digest(dataclasses.replace(PLAN, budget_bytes=1)) != digest
    shuffled = dict(reversed(dataclasses.asdict(PLAN).items()))
    (tmp_path / "plan.json").write_text(json.dumps(shuffled))
    assert plan_digest(read_plan(tmp_path / "plan.json")) == digest


def test_the_step_of_median_length_is_drawn(tmp_path: pathlib.Path) -> None:
    """The first one does not count: of the lengths 1, 3 and 2 the third step's is the median, and it is the fourth."""
    measured = _measured(write_run(tmp_path / "run"))
    assert (measured.number, measured.steps) == (4, 3)
    assert measured.length_us == pytest.approx(900 * 2.0, abs=1)
    assert (measured.shortest_us, measured.longest_us) == pytest.approx((900, 2700), abs=1)
    assert measured.iteration_us == pytest.approx(1e6, abs=1)
    assert measured.rows == ("rank 0\nstage 0", "rank 1\nstage 0", "rank 2\nstage 1", "rank 3\nstage 1")


def test_a_step_that_a_rank_did_not_end_is_left_out(tmp_path: pathlib.Path) -> None:
    folder = write_run(tmp_path / "run")
    last = folder / "rank-00003.json"
    last.write_text(json.dumps(json.loads(last.read_text())[:-1]))
    assert _measured(folder).steps == 3, "a replay is missing: nobody can know"
    last.write_text(json.dumps(json.loads(last.read_text())[:-10]))
    assert _measured(folder).steps == 2


def test_spans_are_those_of_a_simulation(tmp_path: pathlib.Path) -> None:
    measured = _measured(write_run(tmp_path / "run", (1.0,)))
    blocks, loose = blocks_of(measured.spans)
    assert len(blocks) == 4 * 8 and not loose
    found = [block for block in blocks if block.stage == 2]
    assert [block.name for block in found] == [f"0{kind}{number}" for number in range(4) for kind in "FB"]
    for place, block in enumerate(found):
        assert (block.begin_us, block.end_us) == pytest.approx((100 + place * 100, 200 + place * 100), abs=1)
        assert (block.hidden_us, block.exposed_us) == pytest.approx((15, 10) if block.kind == "B" else (0, 0), abs=1)
    first = [span for span in measured.spans if span.stage == 2 and span.end_us < 310]
    assert [(span.lane, span.name, round(span.begin_us), round(span.end_us)) for span in first] == [
        ("wait", "pp_wait", 0, 100),  # it began before the step did
        ("compute", "0F0", 100, 200), ("compute", "0B0", 200, 220),
        ("tp", "0B0.tp_backward", 220, 250), ("wait", "0B0.tp_backward", 220, 250),
        ("recompute", "R(L1.fc) 0.0", 225, 240), ("compute", "0B0", 250, 300), ("recompute", "R(L0.fc) 0.0", 260, 270),
    ]  # fmt: skip


def test_measured_stands_beside_predicted(tmp_path: pathlib.Path) -> None:
    report = sample_report()
    measured = _measured(write_run(tmp_path / "run"))
    rows = {what: (found, expected) for what, found, expected in compared(measured, report.arms[1].result)}
    assert rows["passes of an iteration"] == pytest.approx((1800, 6000), abs=1)
    assert rows["stage 0, hidden recompute"] == pytest.approx((120, 240), abs=1)  # 4 of 15 us, twice as long
    assert rows["stage 1, exposed recompute"] == pytest.approx((80, 240), abs=1)
    assert rows["stage 1, tp_backward windows"] == pytest.approx((240, 0), abs=1)
    assert rows["stage 1, pp_wait windows"] == pytest.approx((200, 400), abs=1)
    page = render(dataclasses.replace(report, measured=measured))
    for words in (
        "measured: 4 ranks, 2026-01-02, plan heu", "Step 4 of the trace", "<td>0.50</td>", ">rank 3<",
        "Every figure outside of the section Measured", "simulated from a profile",
    ):  # fmt: skip
        assert words in page
    assert page.count("<svg") == 5 and "Every figure on this page" not in page


def _page(folder: pathlib.Path, trace: pathlib.Path, *words: str) -> int:
    write_record(folder / "profile.json", PROFILE)
    command = ["report", f"{folder}/profile.json", *words, "--trace", str(trace), "--output", f"{folder}/page.html"]
    return main([*command, "--arms", "full"])


def test_a_page_of_a_plan_and_its_run(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "plan.json", PLAN)
    run = write_run(tmp_path / "run", plan=PLAN, microbatches=4)
    assert _page(tmp_path, run, f"{tmp_path}/plan.json", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["drawn"] == "plan.json (heu)" and data["measured"]["run"]["plan_digest"] == plan_digest(PLAN)
    assert {"time", "measured_us", "predicted_us"} == data["measured"]["times"][0].keys()
    assert "Timeline of plan.json (heu)" in (tmp_path / "page.html").read_text()
    joined = tmp_path / "all.json"
    events = [event for file in sorted(run.iterdir()) for event in json.loads(file.read_text())]
    joined.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
    assert read_traces(joined) == read_traces(run)


def test_a_page_of_a_policy_and_its_run(tmp_path: pathlib.Path) -> None:
    link = "the link between ranks was emulated, 0.4 Gbit/s each way and 50 us"
    run = write_run(tmp_path / "run", plan_digest=None, planner="", policy="on-demand", note=link)
    assert _page(tmp_path, run) == 0
    page = (tmp_path / "page.html").read_text()
    assert f"The {link.removeprefix('the ')}." in page
    assert "Timeline of policy on-demand" in page and "2026-01-02, policy on-demand" in page


def _first(change: Callable[[pathlib.Path], Any]) -> Callable[[pathlib.Path], Any]:
    return lambda folder: change(folder / "rank-00000.json")


def _without_origin(file: pathlib.Path) -> None:
    file.write_text(json.dumps([event for event in json.loads(file.read_text()) if "overlap" not in event["name"]]))


def _wrong_span(field: str, value: Any) -> Callable[[pathlib.Path], None]:
    def change(file: pathlib.Path) -> None:
        events = json.loads(file.read_text())
        events[3][field] = value
        file.write_text(json.dumps(events))

    return change


REFUSED: dict[str, tuple[dict[str, Any], Callable[[pathlib.Path], Any], str]] = {
    "another plan": ({"plan_digest": "0" * 64}, lambda run: None, "a trace of the plan heu 000000000000; expected"),
    "a policy": ({"plan_digest": None, "policy": "all"}, lambda run: None, "a trace of the policy all; expected"),
    "another model": ({"model_fingerprint": "m1"}, lambda run: None, "a trace of the model m1; expected one of m0"),
    "other chunks": ({"chunks": 2}, lambda run: None, "4 ranks in 2 stages of 2 model chunks; expected 4 ranks"),
    "cut short": ({}, _first(lambda file: file.write_text(file.read_text()[:-40])), "no complete trace (cut short"),
    "deep": ({}, _first(lambda file: file.write_text("[" * 100_000)), "no complete trace (cut short"),
    "no list": ({}, _first(lambda file: file.write_text("[1]")), "no list of events"),
    "unreadable": ({}, _first(lambda file: file.write_bytes(b"\xff")), "no complete trace"),
    "a rank too few": ({}, _first(lambda file: file.unlink()), "traces of 3 ranks of 4 in"),
    "empty": ({}, lambda run: [file.unlink() for file in run.iterdir()], "a folder without traces"),
    "says nothing": ({}, _first(_without_origin), "does not say what plan or policy"),
    "no time": ({}, _first(_wrong_span("dur", -1)), "event 3 is no span of a training run"),
    "no lane": ({}, _first(_wrong_span("tid", 7)), "event 3 is no span of a training run"),
    "no pass": ({}, _first(_wrong_span("name", "step 1")), "event 3 is no span of a training run"),
    "no rank": ({}, _first(_wrong_span("pid", [0])), "event 3 is no span of a training run"),
    "no number": ({}, _first(_wrong_span("ts", float("nan"))), "event 3 is no span of a training run"),
    "no step": ({"microbatches": 5}, lambda run: None, "no step is complete on every rank"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_refused(fault: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one sentence, with status 2; nothing is written."""
    changes, spoil, words = REFUSED[fault]
    write_record(tmp_path / "plan.json", PLAN)
    run = write_run(tmp_path / "run", **{"plan": PLAN, **changes})
    spoil(run)
    assert _page(tmp_path, run, f"{tmp_path}/plan.json") == 2
    told = capsys.readouterr().err
    assert words in told and told.count("found ") == 1, told
    assert not (tmp_path / "page.html").exists()


def test_without_a_plan_the_run_must_be_one_of_the_arms(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    assert _page(tmp_path, run, "--memory-gib", "4") == 2
    assert "which is none of the arms; expected its plan; name the plan's file" in capsys.readouterr().err


def test_ranks_of_two_runs_and_large_files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = write_run(tmp_path / "run"), write_run(tmp_path / "other", policy="all", plan_digest=None)
    (other / "rank-00002.json").replace(run / "rank-00002.json")
    with pytest.raises(DataError, match="traces of 2 different runs"):
        read_traces(run)
    monkeypatch.setattr(traces, "MOST_FILE_BYTES", 1000)
    with pytest.raises(DataError, match=r"rank-00000.json with [0-9,]+ bytes of traces; expected at most 1,000"):
        read_traces(run)
