"""Odd words for commands that plan and simulate: one sentence each, status 2, and nothing is computed before it."""

import pathlib
import re

import pytest

from overlap_recompute.cli.main import main
from overlap_recompute.plan.codec import write_record
from tests.unit.plan.samples import sample_profile

NAMED = "--model gpt-1.3b --hardware a100-40gb-pcie --tensor-parallel 2"
SWEPT = "sweep --models gpt-1.3b --hardware a100-40gb-pcie --gpus 2"
FILE = "profile.json --memory-gib 100"

REFUSED = {
    # names
    "simulate --model gpt-13c --hardware h100-sxm --planner full": "write gpt-13b if that was meant",
    "simulate --model gpt-7b --hardware h100-smx --planner full": "write h100-sxm if that was meant",
    "sweep --models gpt-7b,gpt-7x --hardware h100-sxm": "found --models 'gpt-7x', which is no model preset",
    "sweep --models gpt-7b, --hardware h100-sxm": "found --models '', which is no model preset",
    "sweep --models gpt-7b --hardware h100-sxm,h100": "write h100-sxm or h100-pcie if that was meant",
    f"simulate {NAMED} --planner fulll": "found --planner fulll; expected one of heu, mix.*; write full if that",
    f"compare {NAMED} --arms none,mixx": "found --arms mixx; expected one of none.*; write mix if that was meant",
    f"plan {FILE} --memory-gb 4": r"unrecognized arguments: --memory-gb 4\).*; write --memory-gib if that was meant",
    f"plan {FILE} --zebra 4": "; see overlap-recompute plan -h",
    f"report {FILE} --arms full --draw mix": "found --draw mix; expected one of full; correct --draw",
    f"report {FILE} --arms full --draw mixx": "found --draw mixx; expected one of full",
    # layouts
    f"simulate {NAMED} --planner full --tensor-parallel 3": "with 16 heads; expected a divisor of 16",
    f"compare {NAMED} --pipeline-parallel 25": "24 layers over 25 stages",
    f"compare {NAMED} --pipeline-parallel 2 --chunks 2 --microbatches 3": "choose 2 or 4 microbatches",
    f"compare {NAMED} --expert-parallel 2": "which has no experts",
    f"{SWEPT} --tensor-parallel 3 --pipeline-parallel 1": "expected parallel sizes whose product divides the GPUs",
    # sizes
    f"simulate {NAMED} --planner full --microbatches 0": "found --microbatches 0; expected a whole number",
    f"simulate {NAMED} --planner full --microbatches 99999999": "found 99999999 microbatches an iteration",
    f"compare {FILE} --microbatches 1.5": "found --microbatches 1.5; expected a whole number",
    f"compare {NAMED} --microbatches 65537": "found 65537 microbatches an iteration; expected at most 65536",
    f"simulate {NAMED} --planner full --micro-batch nan": "found --micro-batch nan; expected a whole number",
    f"simulate {NAMED} --planner full --sequence -4": "found --sequence -4; expected a whole number",
    f"compare {NAMED} --micro-batch 1000000000000": "found 2048000000000000 tokens in a microbatch .--micro-batch 10",
    f"compare {NAMED} --memory-gib nan": "found --memory-gib nan; expected a size in GiB",
    f"compare {NAMED} --memory-gib -1": "found --memory-gib -1; expected a size in GiB",
    f"compare {NAMED} --memory-share 2": "found --memory-share 2; expected a number from 0",
    f"{SWEPT} --gpus 0": "found --gpus 0; expected a whole number",
    f"{SWEPT} --micro-batch 1,0": "found --micro-batch 0; expected a whole number",
    f"{SWEPT} --global-batch 1000000000": "found --global-batch 1000000000; expected a whole number of 1 to 65536",
    "sweep --sensitivity profile.json --memory-gib 1e-6": r"found stage \d [\d.]+ MiB \(\d+ bytes\) above the memory",
    # flags that would do nothing
    f"plan {FILE} --sequence-parallel": "found --sequence-parallel and a profile file; expected one of the two",
    f"compare {FILE} --attention flash": "found --attention and a profile file; expected one of the two",
    f"{SWEPT} --memory-gib 4": "found --memory-gib without --sensitivity; expected it with --sensitivity only",
    f"{SWEPT} --planner mix": "found --planner without --sensitivity",
    "sweep --sensitivity profile.json --memory-gib 4 --csv a.csv": "found --csv with --sensitivity; expected it in a s",
    "sweep --sensitivity profile.json --memory-gib 4 --models gpt-7b": "found --models with --sensitivity profile.json",
    "schedule --pp 2 --microbatches 4 --recompute-ahead 2": "found --recompute-ahead and no recompute",
    "schedule --pp 2 --microbatches 4 --recompute-slots 2": "found --recompute-slots and no recompute",
    # files
    "memory --plan none.json -- --num-layers 2": "found none.json, which cannot be read",
    "compare empty.json --memory-gib 4": "found empty.json, which is no JSON",
    "compare folder --memory-gib 4": r"found folder, which cannot be read \(Is a directory\)",
    "compare none.json --memory-gib 4": "found none.json, which cannot be read",
    f"simulate {NAMED} folder": r"found folder, which cannot be read \(Is a directory\); expected a plan file",
    "simulate --model gpt-7b --hardware empty.yaml --planner full": "found empty.yaml, which is no list of fields",
    "simulate --model gpt-7b --hardware none.yaml --planner full": r"found none.yaml, .* \(No such file or directory\)",
    f"plan {FILE} --output none/plan.json": "found the file none/plan.json, which cannot be written .No such",
    f"plan {FILE} --output profile.json": "found --output profile.json, which is read as well; expected a file of its",
    f"plan {FILE} --output folder/../profile.json": "which is read as well",
    f"report {FILE} --output profile.json": "found --output profile.json, which is read as well",
    f"simulate {FILE} --planner full --trace a --csv none/b": "found the file none/b, which cannot be written",
    f"simulate {FILE} --planner full --trace a --csv a": "found --csv a, which --trace names as well",
    f"{SWEPT} --csv none/a.csv": "found the file none/a.csv, which cannot be written",
    "profile --output none/p.json -- --num-layers 2": "found the file none/p.json, which cannot be written",
    f"report {FILE} --arms full --output folder": r"found the file folder, which cannot be written \(Is a directory\)",
    f"report {FILE} --arms full --output none/x.html": "found the file none/x.html, which cannot be written",
    f"report {FILE} --arms full --trace folder": "found folder, a folder without traces",
}  # fmt: skip


@pytest.fixture(name="folder")
def _folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    write_record(tmp_path / "profile.json", sample_profile(((2,), (2,))))
    (tmp_path / "folder").mkdir()
    for name in ("empty.json", "empty.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", REFUSED)
def test_one_sentence(words: str, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert main(words.split()) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.count("found ") == 1, told
    assert re.search(REFUSED[words], told.err), told.err
    assert "; expected " in told.err
    assert sorted(folder.rglob("*")) == before


def test_microbatches_count_for_a_profile_file_too(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They were measured, or computed, with some number: another one fills the pipeline better."""
    found = []
    for microbatches in ("2", "64"):
        words = f"compare profile.json --memory-gib 100 --arms none --json --microbatches {microbatches}"
        assert main(words.split()) == 0
        found.append(float(capsys.readouterr().out.partition('"bubble_fraction": ')[2].partition(",")[0]))
    assert found[0] > 4 * found[1] > 0
