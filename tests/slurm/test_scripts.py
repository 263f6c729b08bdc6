"""What the batch scripts of examples/slurm do without a Slurm: say so, and read their files without running them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from megatron.pretrain.config import parse_command_line, validate
from tests.slurm.cluster import ROOT
from tests.slurm.jobs import SCRIPTS

BATCH_SCRIPTS = sorted(path.name for path in SCRIPTS.glob("*.sbatch"))
SHELL = shutil.which("bash") or "/bin/bash"


def run_script(
    script: Path, env: Mapping[str, str], cwd: Path = ROOT, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run a script outside of Slurm, with nothing but `env` in its environment."""
    return subprocess.run(
        [SHELL, str(script), *arguments],
        env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.fixture
def commands(tmp_path: Path) -> str:
    """A PATH with the few programs that the scripts call, and an srun that must not be reached."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "mkdir").symlink_to(shutil.which("mkdir") or "/bin/mkdir")
    (folder / "srun").write_text(f"#!{SHELL}\necho started >&2\nexit 3\n")
    (folder / "srun").chmod(0o755)
    return str(folder)


@pytest.mark.parametrize("name", BATCH_SCRIPTS)
def test_outside_of_a_job_a_script_says_how_to_submit_it(name: str) -> None:
    result = run_script(SCRIPTS / name, {"PATH": "/nonexistent", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "1"})
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "found no SLURM_JOB_ID in the environment" in line and "sbatch" in line


@pytest.mark.parametrize("name", BATCH_SCRIPTS)
def test_a_job_without_srun_is_one_clear_line(name: str) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "7"}
    result = run_script(SCRIPTS / name, {"PATH": "/nonexistent", **job})
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "SLURM_JOB_ID=7 but no program srun on PATH; expected Slurm's commands" in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"PYTHON": "/missing/python"}, ["/missing/python", "set PYTHON"]),
        ({"FLAGS_FILE": "/missing/flags"}, ["/missing/flags", "set FLAGS_FILE"]),
        ({"PROJECT_DIR": "/"}, ["submit from the project's root", "PROJECT_DIR"]),
    ],
)
def test_what_is_missing_is_named(change: dict[str, str], words: list[str], commands: str, tmp_path: Path) -> None:
    env = {"PATH": commands, "SLURM_JOB_ID": "7", "PYTHON": sys.executable, "RUN_DIR": str(tmp_path / "run")}
    result = run_script(SCRIPTS / "pretrain_single_node.sbatch", {**env, **change})
    assert result.returncode == 2
    assert "started" not in result.stderr
    assert all(word in result.stderr.splitlines()[-1] for word in words), result.stderr


def test_the_status_of_srun_is_that_of_the_job(commands: str, tmp_path: Path) -> None:
    env = {"PATH": commands, "SLURM_JOB_ID": "7", "PYTHON": sys.executable, "RUN_DIR": str(tmp_path / "run")}
    result = run_script(SCRIPTS / "pretrain_single_node.sbatch", env)
    assert (result.returncode, result.stderr) == (3, "started\n")


def read_flags(path: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What common.sh makes of a file of flags: one word a line."""
    script = cwd / "read.sh"
    script.write_text(
        'set -euo pipefail\nsource "$1"\nread_flags "$2"\n[[ ${#flags[@]} == 0 ]] || printf "%s\\n" "${flags[@]}"\n'
    )
    return run_script(script, {"PATH": os.defpath}, cwd, str(SCRIPTS / "common.sh"), str(path))


def test_words_of_a_file_are_passed_on_and_never_run(tmp_path: Path) -> None:
    words = ["--a", "$(touch ran)", "`touch ran`", "*", ";touch", "ran", "$HOME", "Et*3|tL", "\\n"]
    path = tmp_path / "flags"
    path.write_text(f"  # comment\n\n{' '.join(words)}\n--last")  # no newline at the end
    result = read_flags(path, tmp_path)
    assert result.stdout.splitlines() == [piece for word in words for piece in word.split()] + ["--last"]
    assert not (tmp_path / "ran").exists()
    path.write_text("# nothing\n")
    assert read_flags(path, tmp_path).stdout == ""


def test_quotes_are_refused_since_they_would_have_no_meaning(tmp_path: Path) -> None:
    path = tmp_path / "flags"
    path.write_text('--moe-layer-freq "[0, 1]"\n')
    result = read_flags(path, tmp_path)
    assert result.returncode == 2
    assert "found a quote in the line" in result.stderr


@pytest.mark.parametrize("ranks", [1, 8, 16, 64])
def test_the_flags_that_come_with_the_scripts_are_good(ranks: int, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"  # the quick start makes the one that the flags name
    tokenizer.write_text("{}")
    flags = [*read_flags(SCRIPTS / "gpt.flags", tmp_path).stdout.split(), "--tokenizer-model", str(tokenizer)]
    world = {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "n1", "MASTER_PORT": "1",
    }  # fmt: skip
    lines = [line for line in (SCRIPTS / "sweep.txt").read_text().splitlines() if not line.startswith("#")]
    if ranks <= 16:
        for line in ("", *lines):
            validate(parse_command_line([*flags, *line.split()], world))
    else:
        with pytest.raises(ValueError, match="global-batch-size"):  # 64 sequences are too few for 64 ranks x 4
            validate(parse_command_line(flags, world))


@pytest.mark.parametrize("name", [*BATCH_SCRIPTS, "common.sh"])
def test_scripts_are_good_bash(name: str) -> None:
    text = (SCRIPTS / name).read_text()
    assert subprocess.run([SHELL, "-n", str(SCRIPTS / name)], timeout=60, check=False).returncode == 0
    assert "eval" not in text.replace("--eval", "").replace("evaluated", "")
    assert name == "common.sh" or "\nset -euo pipefail\n" in text
