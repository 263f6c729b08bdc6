"""Checkpoints on real ranks: exact resume, other layouts, disks that fail, runs that are killed.

Starting ranks costs more than the checks, so each launch runs many scenarios (checkpoint_scenarios.py on four ranks,
checkpoint_kills.py on one process that forks) and each test here looks at the outcome of one.
"""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.distributed.launch import RankResult, run_ranks

RANKS = 4
SMALL_DISK_BYTES = 1_700_000
"""Room for one checkpoint of the tiny model (1.1 MB), not for two."""

SCENARIOS = (
    "resume_plain",
    "resume_distributed_optimizer",
    "resume_bf16_and_sgd",
    "reshard_plain",
    "reshard_distributed_optimizer",
    "reshard_padded_vocabulary",
    "mixture_of_experts",
    "background_save",
    "disk_errors",
    "full_disk",
    "damaged",
    "other_runs",
    "flags",
    "choice",
)
KILLS = (
    "shards half written",
    "before the index",
    "before the rename",
    "between the renames",
    "before the tracker",
    "run killed while its background writer works",
    "background writer killed",
)
Outcomes = list[dict[str, str]]


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A mounted file system of a few megabytes, or "-" where this process may not mount one."""
    folder = str(tmp_path_factory.mktemp("disk"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES},mode=700", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        yield "-"
        return
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def outcomes(module: str, world_size: int, out: pathlib.Path, *arguments: str) -> Outcomes:
    """Run a script of scenarios; return what each rank wrote down."""
    command = [sys.executable, "-m", f"tests.distributed.{module}", str(out), *arguments]
    results = run_ranks(command, world_size)
    assert all(result.returncode == 0 for result in results), _tails(results)
    return [json.loads((out / f"results-{rank}.json").read_text()) for rank in range(world_size)]


def _tails(results: list[RankResult]) -> str:
    return "\n".join(f"--- rank {r.rank} exited {r.returncode}\n{r.output[-3000:]}" for r in results)


@pytest.fixture(scope="module")
def on_four_ranks(tmp_path_factory: pytest.TempPathFactory, small_disk: str) -> Outcomes:
    return outcomes("checkpoint_scenarios", RANKS, tmp_path_factory.mktemp("scenarios"), small_disk)


@pytest.fixture(scope="module")
def after_kills(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return outcomes("checkpoint_kills", 1, tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_on_four_ranks(scenario: str, on_four_ranks: Outcomes) -> None:
    if scenario == "full_disk" and scenario not in on_four_ranks[0]:
        pytest.skip("mounting a small file system needs root and the right to mount")
    assert [result[scenario] for result in on_four_ranks] == [""] * RANKS


@pytest.mark.parametrize("scenario", KILLS)
def test_a_kill_loses_nothing_that_was_complete(scenario: str, after_kills: Outcomes) -> None:
    assert after_kills[0][scenario] == ""


def test_every_scenario_is_looked_at(on_four_ranks: Outcomes, after_kills: Outcomes) -> None:
    assert set(on_four_ranks[0]) | {"full_disk"} == set(SCENARIOS)
    assert set(after_kills[0]) == set(KILLS)
