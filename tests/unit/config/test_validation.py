"""Every contradiction is one clear error, and every check has a command line that it refuses."""

import dataclasses
import pathlib
import traceback

import pytest

from megatron.pretrain.config import PretrainConfig, validate
from megatron.pretrain.config.validation import CHECKS
from overlap_recompute.plan.errors import ConfigError
from tests.unit.config.conftest import Parse

HERE = pathlib.Path(__file__).parent


def cases(name: str) -> list[list[str]]:
    """Entries of a file of command lines: stripped lines between blank ones, without comments."""
    text = (HERE / name).read_text()
    lines = [line.strip() for line in text.split("\n") if not line.startswith("#")]
    return [entry.split("\n") for entry in "\n".join(lines).strip().split("\n\n")]


REFUSED = [(*head.split(), flags, message) for head, flags, message in cases("contradictions.txt")]
ACCEPTED = [line.partition(" ")[::2] for line in cases("accepted.txt")[0]]


def build(parse: Parse, world_size: int, flags: str) -> PretrainConfig:
    """The minimal command line less what WITHOUT- names, plus the flags."""
    removable = {
        "WITHOUT-TRAIN-ITERS": "--train-iters 10",
        "WITHOUT-MOCK-DATA": "--mock-data",
        "WITHOUT-VOCAB-SIZE": "--vocab-size 512",
    }
    without = [words for name, words in removable.items() if name in flags]
    return parse(
        " ".join(word for word in flags.split() if word not in removable),
        world_size=world_size,
        without=",".join(without) if without else "\n",
    )


@pytest.mark.parametrize(("check", "world_size", "flags", "message"), REFUSED)
def test_contradictions(parse: Parse, check: str, world_size: str, flags: str, message: str) -> None:
    config = build(parse, int(world_size), flags)
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert message in str(error.value)
    assert str(error.value).count("; ") >= 2, "found, expected, what to do"
    assert check in {frame.name for frame in traceback.extract_tb(error.value.__traceback__)}


@pytest.mark.parametrize(("world_size", "flags"), ACCEPTED)
def test_what_is_right_passes(parse: Parse, world_size: str, flags: str) -> None:
    validate(build(parse, int(world_size), flags))


def test_every_check_has_a_case() -> None:
    covered = {check for check, *_ in REFUSED} | {"values_are_legal", "preset_is_expanded"}
    assert {check.__name__ for check in CHECKS} == covered


@pytest.mark.parametrize(
    ("group", "field", "value", "message"),
    [
        ("model", "num_layers", 0, "found --num-layers 0; expected a whole number, at least 1"),
        ("model", "num_layers", 2.0, "--num-layers 2.0"),
        ("training", "seed", 2**32, "expected a whole number, at least 0 and at most 4294967295"),
        ("model", "model_preset", "gpt-7b", "found model_preset 'gpt-7b' in a configuration made in code"),
        ("model", "num_layers", True, "--num-layers True"),
        ("model", "swiglu", 1, "--swiglu 1"),
        ("model", "norm_epsilon", float("nan"), "--norm-epsilon nan"),
        ("optimizer", "lr", float("inf"), "--lr inf"),
        ("optimizer", "lr", None, "--lr None"),
        ("optimizer", "lr_decay_style", "steps", "expected one of constant"),
        ("recompute", "recompute_modules", ["mlp"], "--recompute-modules ['mlp']"),
        ("recompute", "recompute_modules", ("attn",), "--recompute-modules 'attn'"),
    ],
)
def test_values_set_in_code_are_checked_too(parse: Parse, group: str, field: str, value: object, message: str) -> None:
    config = parse()
    options = dataclasses.replace(getattr(config, group), **{field: value})
    with pytest.raises(ConfigError) as error:
        validate(dataclasses.replace(config, **{group: options}))
    assert message in str(error.value)


def test_output_folders(parse: Parse, tmp_path: pathlib.Path) -> None:
    validate(parse(f"--save {tmp_path}/new/run --metrics-file {tmp_path}/logs/m.jsonl --tensorboard-dir {tmp_path}/tb"))
    assert not list(tmp_path.iterdir()), "a check makes nothing"
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        validate(parse(f"--save {tmp_path}/file"))
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="cannot be written"):
        validate(parse(f"--save {tmp_path}/dangling"))
