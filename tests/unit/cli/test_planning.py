"""`plan`, `explain`, `compare`, `sweep` and `report` from their words to their output."""

import dataclasses
import json
import pathlib
import re

import pytest

from overlap_recompute.cli.main import main
from overlap_recompute.plan.codec import write_record
from overlap_recompute.plan.validation import read_plan
from overlap_recompute.planner import make_plan
from tests.unit.plan.samples import sample_profile

GIB = 1 << 30
SPLIT = ((3,), (3,))
PROFILE = dataclasses.replace(
    sample_profile(SPLIT),
    # So large that budgets can be given in GiB with few digits.
    kinds=tuple(
        dataclasses.replace(
            kind,
            storages=tuple(dataclasses.replace(row, nbytes=row.nbytes << 20) for row in kind.storages),
            transient_bytes=kind.transient_bytes << 20,
        )
        for kind in sample_profile(SPLIT).kinds
    ),
    origin=dataclasses.replace(
        sample_profile(SPLIT).origin,
        command="pretrain_gpt.py --lr 1e-4 --overlap-recompute-profile p.json --recompute-granularity full",
    ),
)


def _total_gib(planner: str) -> float:
    plan = make_plan(PROFILE, planner=planner, budget_bytes=100 * GIB)
    return max(stage.predicted.memory.total_bytes for stage in plan.stages) / GIB


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    write_record(tmp_path / "profile.json", PROFILE)
    return tmp_path


BETWEEN = f"{(_total_gib('none') + _total_gib('full')) / 2:.4f}"


def test_plan_writes_a_plan_and_says_what_it_does(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", f"{folder}/profile.json", "--memory-gib", BETWEEN, "--output", f"{folder}/plan.json"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    plan = read_plan(folder / "plan.json")
    assert plan.planner == "mix" and any(entry.dropped for entry in plan.stages[0].layers)
    assert all(stage.predicted.memory.total_bytes <= plan.budget_bytes for stage in plan.stages)
    assert "none  does not fit" in shown and "stage 0, layers" in shown
    expected = "torchrun --nproc-per-node 4 pretrain_gpt.py --lr 1e-4 --pipeline-model-parallel-size 2"
    assert f"{expected} --pipeline-model-parallel-layout 'Et*3|t*3L' --overlap-recompute" in shown
    assert "--recompute-granularity" not in shown and "--overlap-recompute-profile" not in shown


def test_plan_speaks_json_and_partitions(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", f"{folder}/profile.json", "--memory-gib", BETWEEN, "--partition", "--planner", "heu", "--json"]
    assert main(words) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["plan"]["version"] == 1 and sum(map(sum, data["plan"]["layout"]["split"])) == 6
    assert {row["planner"] for row in data["baselines"]} >= {"none", "full", "checkmate", "adapipe"}


def test_a_budget_that_is_too_small_names_stage_and_bytes(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", f"{folder}/profile.json", "--memory-gib", "0.1", "--output", f"{folder}/plan.json"]
    for older in (None, "an older plan"):
        if older is not None:
            (folder / "plan.json").write_text(older)
        assert main(words) == 2
        message = capsys.readouterr().err
        assert re.search(r"stage 0 [\d.]+ MiB \(\d+ bytes\) above the memory budget", message)
        assert "--sequence-parallel" in message and message.count("\n") == 1
        assert older == ((folder / "plan.json").read_text() if older else None) and len(list(folder.iterdir())) <= 2


def test_explain_tells_reasons_and_the_price_of_memory(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["plan", f"{folder}/profile.json", "--memory-gib", BETWEEN, "--output", f"{folder}/plan.json", "--json"])
    capsys.readouterr()
    explain = ["explain", f"{folder}/plan.json", "--profile", f"{folder}/profile.json"]
    assert main([*explain, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {facts["unit"] for facts in data["units"]} == {"norm", "fc", "act"}
    assert data["stages"][0]["binding"] == "memory" and data["price_of_memory"]["saved_us"] > 0
    assert main([*explain, "--layer", "0", "--unit", "act"]) == 0
    assert "layer 0, act: " in capsys.readouterr().out
    assert main([*explain, "--layer", "9"]) == 2
    assert "a layer from 0 to 5" in capsys.readouterr().err
    assert main([*explain, "--unit", "atc"]) == 2


def test_compare_shows_all_arms(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", f"{folder}/profile.json", "--memory-gib", BETWEEN, "--json"]) == 0
    arms = {arm["arm"]: arm for arm in json.loads(capsys.readouterr().out)["arms"]}
    assert not arms["none"]["fits"] and "above the memory budget" in arms["none"]["reason"]
    assert main(["compare", f"{folder}/profile.json", "--memory-gib", BETWEEN, "--arms", "none"]) == 1
    assert re.search(
        r"no arm fits: with all recomputed a rank needs [\d.]+ GiB of 3\.1 GiB: add", capsys.readouterr().out
    )
    ours, full, stock = (arms[name]["iteration_us"] for name in ("mix", "full", "stock-full"))
    assert ours < full < stock
    assert arms["mix+partition"]["iteration_us"] <= ours
    assert main(["compare", f"{folder}/profile.json", "--memory-gib", BETWEEN, "--arms", "mixx"]) == 2


def test_sweep_takes_the_best_layout_of_each_arm(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "sweep --models gpt-1.3b --hardware a100-40gb-pcie --gpus 4 --tensor-parallel 1,2 --pipeline-parallel 1,2"
    rest = "--micro-batch 4 --global-batch 16 --arms stock-full,heu --csv".split()
    assert main([*words.split(), *rest, f"{tmp_path}/points.csv"]) == 0
    shown = capsys.readouterr().out
    assert (
        "gpt-1.3b on a100-40gb-pcie" in shown
        and "USD: of a billion tokens" in shown
        and "every figure is simulated" in shown
    )
    assert len((tmp_path / "points.csv").read_text().splitlines()) == 1 + 4 * 2


def test_a_sweep_without_any_layout_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    words = "sweep --models gpt-7b --hardware h100-sxm --gpus 3 --tensor-parallel 3 --pipeline-parallel 1 --arms full"
    assert main([*words.split(), "--micro-batch", "1", "--global-batch", "3"]) == 1
    assert "found --tensor-parallel 3 for gpt-7b with 32 heads; expected a divisor of 32" in capsys.readouterr().out


def test_an_arm_is_compared_once(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", f"{folder}/profile.json", "--memory-gib", BETWEEN, "--arms", "full,mix,full", "--json"]
    assert main(words) == 0
    assert [arm["arm"] for arm in json.loads(capsys.readouterr().out)["arms"]] == ["full", "mix"]


def test_a_model_that_fits_nowhere_says_what_is_short(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = "--hardware a100-40gb-nvlink --arms stock-full,full"
    short = r"a rank needs [\d.]+ GiB, [\d.]+ GiB more than 35\.4 GiB; [\d.]+ GiB of it are weights"
    assert main(f"sweep --models gpt-23b --gpus 4 --micro-batch 1,2 {named}".split()) == 1
    assert re.search(
        rf"closest is 4 x 1 x 1 with micro-batch 1: even with all recomputed {short}", capsys.readouterr().out
    )
    assert main(f"compare --model gpt-23b {named}".split()) == 1
    shown = capsys.readouterr().out
    assert re.search(f"no arm fits: even with all recomputed {short}", shown) and "kWh" not in shown
    assert main(f"report --model gpt-23b {named} --output {tmp_path}/page.html".split()) == 2
    assert re.search(short, capsys.readouterr().err) and not (tmp_path / "page.html").exists()


def test_compare_says_what_the_gain_is(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", f"{folder}/profile.json", "--memory-gib"]
    assert main([*words, BETWEEN, "--arms", "stock-full,adapipe,mix"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"mix is [\d.]+% faster than adapipe", shown)
    assert main([*words, "100", "--arms", "none,stock-full,adapipe,mix"]) == 0
    assert "no gain: mix, the best of ours" in (shown := capsys.readouterr().out) and "memory is not short" in shown


def test_sensitivity_knows_where_the_gain_vanishes(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "sweep",
        "--sensitivity",
        f"{folder}/profile.json",
        "--memory-gib",
        "100",
        "--planner",
        "none",
        "--baseline",
        "full",
        "--json",
    ]
    assert main(words) == 0
    data = json.loads(capsys.readouterr().out)
    points = data["points"]
    assert data["says"][0] == "Where the gain vanishes (below 1 %):" and len(data["says"]) == 8
    assert len(points) == 21 and all(point["gain"] >= 1.0 for point in points)
    compute = [point["gain"] for point in points if point["what"] == "compute"]
    assert compute == sorted(compute, reverse=True)  # recompute weighs less as devices get faster


def test_report_writes_one_page(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["report", f"{folder}/profile.json", "--memory-gib", BETWEEN, "--arms", "none,stock-full,full,mix"]
    assert main([*words, "--output", f"{folder}/report.html"]) == 0
    page = (folder / "report.html").read_text()
    assert "Timeline of mix" in page and "none: found stage 0" in page and "R(L" in page
    assert main([*words, "--output", f"{folder}/no/report.html"]) == 2


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("plan", "no profile file and no --model"),
        ("plan profile.json --model gpt-7b --memory-gib 1", "--model and a profile file"),
        ("plan --model gpt-7b", "no profile file and no --hardware"),
        ("plan --model gpt-8b --hardware h100-sxm", "gpt-7b"),
        ("plan --model gpt-7b --hardware h100", "h100-sxm"),
        ("plan missing.json", "missing.json"),
        ("plan . --memory-gib 4", "., which cannot be read (Is a directory); expected a profile file"),
        ("plan --model gpt-7b --hardware h100-sxm --memory-gib 1e300", "--memory-gib 1e300; expected a size in GiB"),
        ("plan --model gpt-7b --hardware h100-sxm --memory-gib nan", "--memory-gib nan; expected a size in GiB"),
        ("explain . --profile .", "., which cannot be read (Is a directory); expected a profile file"),
        ("diff . .", "., which cannot be read (Is a directory); expected a plan file"),
        ("memory --base-mib nan -- --num-layers 2", "--base-mib nan; expected a whole number of at least 0"),
        ("compare missing.json --memory-gib many", "missing.json"),
        ("sweep --models gpt-7b", "no --hardware"),
        ("sweep --sensitivity missing.json", "without --memory-gib"),
        ("sweep --sensitivity --memory-gib 4", "--sensitivity without a profile and no --models"),
        ("sweep --sensitivity --models gpt-7b --hardware h100-sxm --memory-gib 4", "and no --tensor-parallel"),
        ("sweep --models gpt-7b --hardware h100-sxm --gpus 7 --tensor-parallel 2", "7 GPUs"),
    ],
)
def test_wrong_words_are_one_sentence(words: str, found: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    message = capsys.readouterr().err
    assert found in message and message.count("\n") == 1
