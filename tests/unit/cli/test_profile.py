"""`overlap-recompute profile` without a run: what it would start, and what it shows."""

import io
import pathlib
import sys

import pytest

from overlap_recompute.cli.main import main
from overlap_recompute.cli.profile import command_of
from overlap_recompute.cli.profile_texts import profile_text
from overlap_recompute.plan.codec import write_record
from overlap_recompute.plan.errors import ConfigError
from tests.unit.plan.samples import sample_profile

OUTPUT = pathlib.Path("p.json")


def test_one_rank_needs_no_launcher() -> None:
    command = command_of(["--num-layers", "2"], output=OUTPUT, ranks=1, warm_up=2, iterations=5)
    assert command[0] == sys.executable
    assert command[1].endswith("pretrain_gpt.py")
    assert pathlib.Path(command[1]).is_file()
    assert command[command.index("--train-iters") + 1] == "7"
    assert command[command.index("--overlap-recompute-profile") + 1] == "p.json"


def test_several_ranks_are_started_by_torchrun() -> None:
    command = command_of(["--num-layers", "2"], output=OUTPUT, ranks=4, warm_up=1, iterations=1)
    assert command[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]


def test_a_package_without_its_trainer_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    """As when it was installed by itself, not from a clone."""
    monkeypatch.setattr("overlap_recompute.cli.profile.TRAINER", tmp_path / "pretrain_gpt.py")
    assert main(["profile", "--output", f"{tmp_path}/p.json", "--", "--num-layers", "2"]) == 2
    assert "found no trainer at " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no flags of a run"),
        (["--save", "x"], "--save among the flags of the run"),
        (["--train-iters=3"], "--train-iters=3 among the flags of the run"),
    ],
)
def test_flags_that_do_not_go_with_it(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        command_of(words, output=OUTPUT, ranks=1, warm_up=1, iterations=1)
    assert message in str(error.value)


def test_show(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.json"
    write_record(path, sample_profile())
    assert main(["profile", "--show", str(path)]) == 0
    text = capsys.readouterr().out
    assert "4 layers: norm, wide linear, activation" in text
    assert "[tp_backward all_reduce 60 +20]" in text
    assert "link send: 5 us" in text
    assert "one microbatch through all layers: 2.0 ms, of which windows 0.4 ms" in text
    assert main(["profile", "--show", str(path), "--", "--num-layers", "2"]) == 2
    assert io.StringIO(profile_text(sample_profile())).readlines()[0].startswith("model ")
