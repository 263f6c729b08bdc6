"""`overlap-recompute schedule`: pictures, lists, files, refusals."""

import json
from pathlib import Path

import pytest

from overlap_recompute.cli.main import main
from overlap_recompute.plan.actions import parse_actions
from overlap_recompute.schedules import (
    one_f_one_b,
    pipeline_schedule,
    read_csv,
    validate,
    with_communication,
    with_recompute,
)


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["schedule", *words]) == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["schedule", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_the_picture_of_1f1b(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "--pp", "2", "--microbatches", "2", "--width", "80")
    assert text == "\n".join(
        [
            "1F1B: 2 rank(s), 2 microbatch(es)",
            "",
            "slot     0   1   2   3   4   5   6   7   8",
            "rank 0 0F0 0F1   .   . 0B0   =   . 0B1   =",
            "rank 1   . 0F0 0B0   = 0F1 0B1   =   .   .",
            "",
            "0F3: forward pass of model chunk 0 on microbatch 3; B backward pass; = goes on; . idle",
            "",
            "rank  in flight  by chunk  bubble slots",
            "   0          2         2             3",
            "   1          1         1             3",
            "",
            "9 slots with F = 1, B = 2; bubble 33.3 %",
            "The clock is abstract: it shows the order, it does not predict times.",
            "",
        ]
    )


def test_recompute_shows_what_is_hidden_and_what_is_exposed(capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--pp", "4", "--microbatches", "8")
    ahead, late = (output(capsys, *size, "--recompute", where) for where in ("all", "on-demand"))
    assert "   0          4         4             9         8          0" in ahead
    assert "   0          4         4            12         0          8" in late
    assert "41 slots with F = 1, B = 2, recompute = 1" in ahead
    assert "44 slots with F = 1, B = 2, recompute = 1" in late


def test_costs_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "--pp", "2", "--microbatches", "3", "--forward-slots", "2", "--backward-slots", "2")
    assert "bubble 25.0 %" in text  # (2 - 1) / (3 + 2 - 1)
    text = output(capsys, "--pp", "2", "--microbatches", "1", "--transfer-slots", "3")
    assert "12 slots with F = 1, B = 2, transfer = 3" in text
    text = output(capsys, "--pp", "2", "--microbatches", "1", "--recompute", "all", "--recompute-slots", "4")
    assert "recompute = 4" in text


def test_lists_of_passes_and_of_all_actions(capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--pp", "2", "--microbatches", "2")
    assert output(capsys, *size, "--order", "only") == "rank 0: 0F0 0F1 0B0 0B1\nrank 1: 0F0 0B0 0F1 0B1\n"
    assert "0R0" in output(capsys, *size, "--order", "only", "--recompute", "warmup")
    lines = output(capsys, *size, "--order", "all").splitlines()
    rows = tuple(parse_actions(line.partition(": ")[2]) for line in lines)
    assert rows == with_communication(one_f_one_b(2, 2))


def test_json_has_figures_and_actions(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--pp", "2", "--vpp", "2", "--microbatches", "4", "--recompute", "all", "--json")
    document = json.loads(output(capsys, *words))
    assert document["schema"] == "schedule/1"
    assert (document["ranks"], document["chunks"], document["microbatches"]) == (2, 2, 4)
    grid = tuple(parse_actions(" ".join(rank["actions"])) for rank in document["by_rank"])
    assert grid == with_recompute(with_communication(pipeline_schedule(2, 2, 4)))
    assert document["by_rank"][0]["peak_in_flight_by_chunk"] == [4, 2]
    slots = sum(rank["hidden_recompute_slots"] + rank["exposed_recompute_slots"] for rank in document["by_rank"])
    assert slots == 2 * 2 * 4


def test_csv_is_written_and_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    size = ("--pp", "3", "--microbatches", "4", "--recompute", "steady,cooldown")
    first = output(capsys, *size, "--csv", str(path))
    assert first.endswith(f"wrote {path}\n")
    assert validate(read_csv(path))
    again = output(capsys, "--from-csv", str(path))
    assert again.splitlines()[1:] == first.splitlines()[1:-1]


def test_a_schedule_that_cannot_run_is_shown_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("0F0,0B0,0F1,0B1\n0F0,0B0,0B1,0F1\n")
    text = refusal(capsys, "--from-csv", str(path))
    assert "the first on rank 1: 0B1 comes before 0F1" in text
    assert "   2  0F1     0B1 <-- ERROR HERE" in text


def test_an_evaluation_has_no_backward(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "--pp", "2", "--vpp", "2", "--microbatches", "2", "--forward-only", "--order", "all")
    assert "B" not in text


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", "found no --pp and no --microbatches"),
        ("--pp 2", "found no --microbatches"),
        ("--pp two --microbatches 4", "found --pp two; expected a whole number of at least 1"),
        ("--pp 0 --microbatches 4", "found --pp 0"),
        (
            "--pp 4 --vpp 2 --microbatches 10",
            "expected whole groups of 4, or a last group of at least 4; choose 8 or 12",
        ),
        ("--pp 4 --microbatches 8 --group-size 4", "group size of 4 with one model chunk"),
        ("--pp 1 --vpp 2 --microbatches 8", "1 pipeline ranks with interleaving"),
        (
            "--pp 2 --microbatches 4 --recompute sometimes",
            "found --recompute sometimes; expected one of warmup, steady",
        ),
        ("--pp 2 --microbatches 4 --recompute on-demand,all", "on-demand by itself"),
        ("--pp 2 --microbatches 4 --recompute all --recompute-ahead 0", "found --recompute-ahead 0"),
        ("--pp 2 --microbatches 4 --order none", "found --order none; expected one of only, all"),
        ("--pp 2 --microbatches 4 --backward-slots -1", "found --backward-slots -1"),
        ("--pp 2 --microbatches 4 --forward-slots 1001", "--forward-slots 1001; expected a whole number of 1 to 1000"),
        ("--pp 1000000 --microbatches 1000000", "1000000000000 forward passes; expected at most 20000"),
        (
            "--pp 4 --microbatches 200 --forward-slots 1000 --backward-slots 1000",
            "found a picture of 4 ranks times 406000",
        ),
        ("--pp 2 --microbatches 4 --width 5", "found --width 5; expected a whole number of at least 40"),
        ("--pp 2 --microbatches 4 --csv /proc/no/a.csv", "/proc/no/a.csv"),
        ("--from-csv a.csv --pp 2", "found --from-csv with --pp"),
        ("--from-csv a.csv --forward-only", "found --from-csv with --forward-only"),
        ("--from-csv /proc/no/a.csv", "/proc/no/a.csv"),
    ],
)
def test_refusals_say_what_to_do(words: str, found: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = refusal(capsys, *words.split())
    assert found in text
    assert text.count("\n") == 1
