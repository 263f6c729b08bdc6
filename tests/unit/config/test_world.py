"""Ranks from the launcher's environment."""

import pytest

from megatron.pretrain.config.world import World, first_host, world_from_environment
from overlap_recompute.plan.errors import ConfigError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu1", "MASTER_PORT": "1234"}
SRUN = {
    "SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "17003", "SLURM_STEP_ID": "0",
    "SLURM_JOB_NODELIST": "gpu[007-008,11],cpu1",
}  # fmt: skip


def test_a_single_process() -> None:
    assert world_from_environment({"PATH": "/bin"}) == World()


def test_torchrun() -> None:
    expected = World(rank=3, world_size=8, local_rank=1, master_addr="gpu1", master_port=1234)
    assert world_from_environment(TORCHRUN) == expected
    assert world_from_environment({**SRUN, **TORCHRUN}) == expected, "torchrun under srun: torchrun counts"


def test_srun() -> None:
    assert world_from_environment(SRUN) == World(
        rank=3, world_size=8, local_rank=1, master_addr="gpu007", master_port=15003
    )
    step = {**SRUN, "SLURM_STEP_NODELIST": "cpu1", "MASTER_PORT": "99"}
    assert world_from_environment(step) == World(rank=3, world_size=8, local_rank=1, master_addr="cpu1", master_port=99)
    assert world_from_environment({**SRUN, "MASTER_ADDR": "head"}).master_addr == "head"


def test_ports_of_slurm_jobs_are_legal_and_spread() -> None:
    ports = {world_from_environment({**SRUN, "SLURM_JOB_ID": str(job)}).master_port for job in range(100)}
    assert len(ports) == 100
    assert all(1024 < port < 32768 for port in ports)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("n1", "n1"), ("n1,n2", "n1"), ("n[1-2]", "n1"), ("n[003-005,9]", "n003"), ("n[7,9-12],m1", "n7"),
        ("r[1-2]n[04-07]", "r1n04"), ("gpu-a100-[01-04].cluster.org", "gpu-a100-01.cluster.org"), (" n1 ", "n1"),
    ],
)  # fmt: skip
def test_first_host_of_a_node_list(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


@pytest.mark.parametrize("nodelist", ["", "n[1-2", "n]1[", "[]", ",n1", "n1;rm", "n[1-2]]"])
def test_a_broken_node_list(nodelist: str) -> None:
    with pytest.raises(ConfigError, match="Slurm node list"):
        first_host(nodelist)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"RANK": "8"}, "RANK='8' in the environment; expected a whole number of at least 0 and at most 7"),
        ({"RANK": "-1"}, "RANK='-1'"),
        ({"RANK": "one"}, "RANK='one'"),
        ({"RANK": ""}, "RANK=''"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0' in the environment; expected a whole number of at least 1"),
        ({"LOCAL_RANK": "9"}, "LOCAL_RANK='9'"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT='65536'"),
        ({"MASTER_ADDR": ""}, "8 ranks and no MASTER_ADDR"),
    ],
)
def test_malformed_values(change: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        world_from_environment({**TORCHRUN, **change})
    assert expected in str(error.value)


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_a_missing_value(missing: str) -> None:
    environ = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(ConfigError, match=f"without {missing}"):
        world_from_environment(environ)


BATCH_SCRIPT = {"SLURM_JOB_ID": "17003", "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
SALLOC = {"SLURM_JOB_ID": "17003", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "gpu7"}


@pytest.mark.parametrize("environ", [BATCH_SCRIPT, SALLOC])
def test_outside_of_a_step_only_one_task_may_run(environ: dict[str, str]) -> None:
    """No waiting for ranks that never come, and no lonely rank where many were asked for."""
    for tasks in ({"SLURM_NTASKS": "8"}, {"SLURM_NNODES": "2"}):
        with pytest.raises(ConfigError, match="put srun before the command"):
            world_from_environment({**environ, **tasks})
        assert world_from_environment({**environ, **tasks, **TORCHRUN}).world_size == 8
    for tasks in ({}, {"SLURM_NTASKS": "1"}):
        alone = world_from_environment({**environ, **tasks})
        assert alone == World(master_port=15003), "at the machine it is on: a shell of salloc is on the login node"


def test_mpirun_is_not_taken_for_a_single_process() -> None:
    with pytest.raises(ConfigError, match="torchrun or srun"):
        world_from_environment({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"})
