"""`overlap-recompute memory` on a counted model."""

import json
import os
import pathlib
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from overlap_recompute.cli import counting, memory
from overlap_recompute.cli.memory_choice import choice_of, value_of
from overlap_recompute.cli.parser import new_parser
from overlap_recompute.plan.codec import to_text, write_record
from overlap_recompute.plan.counted import COUNTED_VERSION, CountedEnd, CountedKind, CountedModel, CountedUnit
from overlap_recompute.plan.errors import UserError
from tests.unit.plan.samples import KIND, sample_plan, sample_profile

MIB = 1 << 20
NAMES = {"fc": "linear_fc1", "act": "activation"}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> CountedModel:
    profile = sample_profile()
    kind = CountedKind(
        fingerprint="f0",
        description="a layer",
        units=tuple(
            CountedUnit(name=name, reads=(), refusal="gathers" if name == "linear_qkv" else None)
            for name in ("linear_qkv", "linear_fc1", "activation")
        ),
        storages=tuple(
            replace(
                row,
                maker=NAMES.get(str(row.maker)),
                replay_readers=tuple(NAMES[unit] for unit in row.replay_readers if unit in NAMES),
                nbytes=row.nbytes * MIB,
            )
            for row in KIND.storages
        ),
        backward_needs=(("activation",), ("linear_fc1", "activation")),
        parameters=MIB,
        expert_parameters=0,
        transient_bytes=500 * MIB,
    )
    end = CountedEnd(parameters=2 * MIB, kept_bytes=200 * MIB, transient_bytes=800 * MIB)
    model = CountedModel(
        version=COUNTED_VERSION, device="cpu", model="sample", model_fingerprint=profile.model_fingerprint,
        layout=profile.layout, kinds=(kind,), layers=(0,) * 4, embedding=end, head=end, boundary_bytes=100 * MIB,
        static=profile.static, tied_parameters=0, software=(),
    )  # fmt: skip
    monkeypatch.setattr(memory, "count_model", lambda words, device, world_size: model)
    return model


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    parser = new_parser("memory", "", "")
    memory.add_arguments(parser)
    assert memory.run(parser.parse_args(words), sys.stdout) == 0
    return capsys.readouterr().out


def test_a_table_for_people_and_one_for_programs(counted: CountedModel, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "--base-mib", "300", "--", "--num-layers", "4")
    assert "no recompute" in shown and "working set" in shown and "base: not known" not in shown
    facts = json.loads(run(capsys, "--json", "--base-mib", "300", "--", "--num-layers", "4"))
    first = facts["stages"][0]
    assert first["base_bytes"] == 300 * MIB and first["kept_bytes"] == 2 * (200 + 2 * 600) * MIB
    assert first["total_bytes"] == sum(first[name] for name in first if name.endswith("_bytes")) - first["total_bytes"]


def test_policies_drop_what_can_be_dropped(counted: CountedModel) -> None:
    every = choice_of(counted, ["--overlap-recompute"], None)
    assert every.dropped[0] == {"linear_fc1", "activation"}
    assert every.cap_bytes == (2 * 800 * MIB,) * 2
    by_stage = choice_of(counted, ["--overlap-recompute-policy", "0:activation,1:none"], None)
    assert (by_stage.dropped[1], by_stage.dropped[2]) == ({"activation"}, frozenset())
    capped = choice_of(counted, ["--overlap-recompute", "--overlap-recompute-prefetch-mib=7"], None)
    assert capped.cap_bytes == (7 * MIB,) * 2
    assert choice_of(counted, ["--overlap-recompute-policy", "on-demand"], None).cap_bytes == (0, 0)
    alone = replace(counted, layout=replace(counted.layout, tensor_parallel=1, pipeline_parallel=1, split=((4,),)))
    assert choice_of(alone, ["--overlap-recompute"], None).cap_bytes == (0,)
    assert value_of(["--a", "1", "--a", "2"], "--a") == "2"


def test_a_plan_says_what_is_kept(counted: CountedModel, tmp_path: pathlib.Path) -> None:
    plan = sample_plan(sample_profile(((1,), (3,))))
    choice = choice_of(counted, [], (tmp_path / "plan.json", plan))
    assert choice.split == ((1,), (3,)) and choice.dropped[3] == {"fc", "act"} and choice.cap_bytes == (400, 400)
    write_record(tmp_path / "other.json", replace(plan, model_fingerprint="m1"))
    with pytest.raises(UserError, match="the model of the flags"):
        choice_of(counted, ["--overlap-recompute-plan", str(tmp_path / "other.json")], None)


def test_the_plan_may_be_a_pipe(counted: CountedModel, capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        stream.write(to_text(sample_plan(sample_profile(((1,), (3,))))))
    with os.fdopen(reading):
        facts = json.loads(run(capsys, "--json", "--plan", f"/dev/fd/{reading}", "--", "--num-layers", "4"))
    assert [stage["layers"] for stage in facts["stages"]] == [[1], [3]]


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (2, '{"found": "--x 1", "expected": "2", "next_step": "mend it"}\n', "found --x 1; expected 2; mend it."),
        (2, "no json", "could not be counted"),
        (1, "", "the last words"),
    ],
)
def test_faults_of_counting_reach_the_user(
    status: int, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, status, text, "a log\nthe last words")

    monkeypatch.setattr(counting.subprocess, "run", fail)
    with pytest.raises(UserError, match=message):
        counting.count_model(["--x", "1"], device="cpu")


def test_flags_are_needed(counted: CountedModel, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="flags of pretrain_gpt.py behind --"):
        run(capsys)
