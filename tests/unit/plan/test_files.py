"""Profiles and plans as files: what is written is read; what is wrong is refused with file and field."""

import errno
import json
import os
import pathlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from overlap_recompute.plan import codec
from overlap_recompute.plan.codec import FileError, to_text, write_record
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.validation import check_plan_fits, read_plan, read_profile
from tests.unit.plan.samples import sample_plan, sample_profile

Change = Callable[[dict[str, Any]], None]


def _put(*path: Any, value: Any) -> Change:
    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def _remove(*path: Any) -> Change:
    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


def _no_time(data: dict[str, Any]) -> None:
    for step in (*data["kinds"][0]["forward"], *data["kinds"][0]["backward"]):
        step["duration_us"] = 0.0


PROFILE_FAULTS = {
    "older version": (_put("version", value=0), "version 0"),
    "no version": (_remove("version"), "without a field version"),
    "missing field": (_remove("kinds", 0, "parameters"), "without profile.kinds[0].parameters"),
    "unknown field": (_put("origin", "colour", value="red"), "profile.origin.colour"),
    "negative time": (
        _put("kinds", 0, "units", 1, "forward_us", value=-1.0),
        "profile.kinds[0].units[1].forward_us is -1",
    ),
    "endless iteration": (_put("layout", "microbatches", value=10**12), "layout.microbatches is 1000000000000"),
    "no time at all": (_no_time, "profile.kinds is without a step that takes time"),
    "time is no number": (_put("kinds", 0, "units", 1, "forward_us", value=float("nan")), "forward_us is nan"),
    "endless time": (_put("kinds", 0, "forward", 0, "duration_us", value=float("inf")), "duration_us is inf"),
    "time above all bounds": (_put("kinds", 0, "units", 1, "forward_us", value=10**400), "forward_us is 1000"),
    "size above all bounds": (_put("boundary_bytes", value=10**400), "profile.boundary_bytes is 1000"),
    "text for a number": (_put("boundary_bytes", value="12"), "profile.boundary_bytes is '12'"),
    "bool for a number": (_put("boundary_bytes", value=True), "profile.boundary_bytes is True"),
    "cycle": (_put("kinds", 0, "units", 0, "reads", value=["act"]), "the cycle norm -> act -> fc -> norm"),
    "reads itself": (_put("kinds", 0, "units", 0, "reads", value=["norm"]), "the cycle norm -> norm"),
    "unknown unit is read": (_put("kinds", 0, "units", 1, "reads", value=["nrom"]), "units[1].reads is with 'nrom'"),
    "unknown unit is needed": (_put("kinds", 0, "backward", 0, "needs", value=["x"]), "backward.[0].needs"),
    "unknown maker": (_put("kinds", 0, "storages", 1, "maker", value="x"), "storages[1].maker"),
    "unknown kind of window": (_put("kinds", 0, "forward", 4, "kind", value="tp"), "forward.[4].kind is 'tp'"),
    "layer of no kind": (_put("layers", 0, value=1), "layers[0] is 1"),
    "split of other layers": (_put("layout", "split", value=[[1], [2]]), "layout.split is of 3 layers"),
    "split of other stages": (_put("layout", "split", value=[[4]]), "layout.split is of 1 stages"),
    "no microbatches": (_put("layout", "microbatches", value=0), "layout.microbatches is 0"),
    "unknown source": (_put("origin", "source", value="guessed"), "origin.source is guessed"),
    "link twice": (lambda data: data["links"].append(data["links"][0]), "links is with a name twice"),
}
PLAN_FAULTS = {
    "older version": (_put("version", value=7), "version 7"),
    "a stage is missing": (lambda data: data["stages"].pop(), "plan.stages is of 1 stages"),
    "a split beyond all bounds": (_put("layout", "split", value=[[1 << 60], [2]]), "stages[0].layers is 2 layers"),
    "a unit is dropped twice": (
        _put("stages", 1, "layers", 0, "dropped", value=["act", "fc", "act"]),
        "stages[1].layers[0].dropped is with a unit twice",
    ),
    "in flight of other chunks": (
        _put("stages", 1, "predicted", "in_flight", value=[1, 1]),
        "stages[1].predicted.in_flight is of 2 chunks",
    ),
    "window of another stage": (
        _put("stages", 0, "fills", 0, "window", value="B2.0"),
        "fills[0].window is 'B2.0'; expected a window of a layer of this stage",
    ),
    "stages in another order": (lambda data: data["stages"].reverse(), "stages[0].stage is 1"),
    "a layer is missing": (lambda data: data["stages"][0]["layers"].pop(), "stages[0].layers"),
    "unknown kind of window": (_put("stages", 1, "window_kinds", value=["pp"]), "stages[1].window_kinds is with 'pp'"),
    "fills what is kept": (
        _put("stages", 0, "fills", 0, "unit", value="norm"),
        "stages[0].fills[0].unit is norm of layer 0",
    ),
    "unknown window": (_put("stages", 0, "fills", 0, "window", value="X1"), "fills[0].window is 'X1'"),
    "fills twice": (
        lambda data: data["stages"][0]["fills"].append(data["stages"][0]["fills"][0]),
        "stages[0].fills is with a unit twice",
    ),
}


def test_what_is_written_is_read(tmp_path: pathlib.Path) -> None:
    profile = sample_profile()
    plan = sample_plan(profile)
    write_record(tmp_path / "profile.json", profile)
    write_record(tmp_path / "plan.json", plan)
    assert read_profile(tmp_path / "profile.json") == profile
    assert read_plan(tmp_path / "plan.json") == plan
    check_plan_fits(plan, profile, "plan.json")


@pytest.mark.parametrize("name", PROFILE_FAULTS)
def test_a_wrong_profile_is_refused_with_its_field(name: str, tmp_path: pathlib.Path) -> None:
    change, expected = PROFILE_FAULTS[name]
    data = json.loads(to_text(sample_profile()))
    change(data)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(data))
    with pytest.raises(FileError) as caught:
        read_profile(path)
    assert expected in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("name", PLAN_FAULTS)
def test_a_wrong_plan_is_refused_with_its_field(name: str, tmp_path: pathlib.Path) -> None:
    change, expected = PLAN_FAULTS[name]
    data = json.loads(to_text(sample_plan(sample_profile())))
    change(data)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    with pytest.raises(FileError) as caught:
        read_plan(path)
    assert expected in str(caught.value) and str(path) in str(caught.value)


def test_truncated_and_missing_files_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(FileError, match="cannot be read"):
        read_profile(path)
    path.write_text(to_text(sample_profile())[:-40])
    with pytest.raises(FileError, match="is no JSON"):
        read_profile(path)
    path.write_text("[" * 200_000)
    with pytest.raises(FileError, match="is no JSON"):
        read_profile(path)
    path.write_text("[]")
    with pytest.raises(FileError, match="without a field version"):
        read_profile(path)
    with pytest.raises(FileError, match=r"cannot be read \(Is a directory\)"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda profile: sample_profile(((3,), (3,))), "layout.split is of 4 layers; expected 6 layers"),
        (lambda profile: replace(profile, model_fingerprint="m1"), "model_fingerprint is m0; expected m1"),
        (
            lambda profile: replace(profile, layout=replace(profile.layout, tensor_parallel=4)),
            "layout.tensor_parallel is 2; expected 4, that of the profile",
        ),
        (lambda profile: with_kind(profile, backward=profile.kinds[0].forward[:1]), "fills[0].window is 'B1.0'"),
        (lambda profile: with_kind(profile, units=profile.kinds[0].units[:2]), "layers[0].dropped is with 'act'"),
        (
            lambda profile: with_kind(profile, units=tuple(replace(u, refusal="no") for u in profile.kinds[0].units)),
            "layers[0].dropped is with fc; expected it kept: no",
        ),
    ],
)
def test_another_models_plan_is_refused(change: Callable[[Profile], Profile], message: str) -> None:
    profile = sample_profile()
    with pytest.raises(FileError) as caught:
        check_plan_fits(sample_plan(profile), change(profile), "plan.json")
    assert f"plan.json, whose plan.{'stages[0].' if '[0]' in message else ''}{message}" in str(caught.value)


def with_kind(profile: Profile, **changes: Any) -> Profile:
    return replace(profile, kinds=tuple(replace(kind, **changes) for kind in profile.kinds))


def test_nothing_is_left_when_writing_fails(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileError, match="cannot be written"):
        write_record(tmp_path / "no" / "plan.json", sample_profile())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_what_was_there_stays_when_writing_fails(
    step: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is noticed when bytes go out, or when the new file takes its place; half a file is seen by nobody."""
    path = tmp_path / "plan.json"
    path.write_text("an older plan")

    def full(*args: Any) -> None:
        assert path.read_text() == "an older plan"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(FileError, match="No space left on device"):
        write_record(path, sample_plan(sample_profile()))
    assert path.read_text() == "an older plan" and list(tmp_path.iterdir()) == [path]


def test_a_file_without_end_is_read_no_further_than_a_plan_may_be_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_MAX_FILE_BYTES", 1000)
    with pytest.raises(FileError, match="/dev/zero of more than 1000 bytes; expected a plan of at most as many"):
        read_plan(pathlib.Path("/dev/zero"))
