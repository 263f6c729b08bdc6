"""This process among all processes of the run, as the launcher's environment tells it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from overlap_recompute.plan.errors import ConfigError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SRUN = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
DEFAULT_PORT = 29500
SLURM_PORTS = range(15000, 32000)
"""Below Linux's ephemeral ports; a job takes the one at its number, so that two jobs on a machine rarely meet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process among all processes of the run; from the launcher's environment, not from flags."""

    rank: int = 0
    """Number of this process, from 0."""

    world_size: int = 1
    """Number of processes of the run."""

    local_rank: int = 0
    """Number of this process on its machine, from 0."""

    master_addr: str = "127.0.0.1"
    """Host name or address of rank 0."""

    master_port: int = DEFAULT_PORT
    """TCP port of the rendezvous on that host."""


def world_from_environment(environ: Mapping[str, str]) -> World:
    """The world that torchrun's variables describe, else srun's, else a single process.

    Raises:
        ConfigError: a variable is missing or malformed, or the launcher is one that gives no ranks.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return _world(environ, TORCHRUN, environ.get("MASTER_ADDR"), DEFAULT_PORT)
    if "SLURM_JOB_ID" in environ and "SLURM_STEP_ID" not in environ:
        _check_is_one_task(environ)
        return World(master_port=_slurm_port(environ))
    if "SLURM_PROCID" in environ:
        address = environ.get("MASTER_ADDR") or _first_slurm_host(environ)
        return _world(environ, SRUN, address, _slurm_port(environ))
    if _number(environ, "OMPI_COMM_WORLD_SIZE", default=1) > 1:
        raise ConfigError(
            "OMPI_COMM_WORLD_SIZE in the environment but no RANK", "ranks from torchrun or srun", "start with torchrun"
        )
    return World()


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list such as "node[003-005,9],login1".

    Raises:
        ConfigError: the list is empty or its brackets do not match.
    """
    host = re.match(r"(?:[^,\[\]]|\[[^\[\]]*\])*", nodelist.strip())
    first = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", host.group(0) if host else "")
    rest = nodelist.strip()[host.end() if host else 0 :]
    if not re.fullmatch(r"[\w.:-]+", first) or not (rest == "" or rest.startswith(",")):
        raise ConfigError(
            f"the Slurm node list {nodelist!r}", "host names such as node[003-005]", "set MASTER_ADDR to rank 0's host"
        )
    return first


def _world(environ: Mapping[str, str], names: tuple[str, str, str], address: str | None, port: int) -> World:
    rank_name, size_name, local_name = names
    missing = [name for name in names if name not in environ]
    if missing:
        raise ConfigError(
            f"{rank_name if rank_name in environ else size_name} in the environment without {' and '.join(missing)}",
            f"all of {', '.join(names)}",
            "start with torchrun or srun, or set them all",
        )
    world_size = _number(environ, size_name, low=1)
    return World(
        rank=_number(environ, rank_name, high=world_size - 1),
        world_size=world_size,
        local_rank=_number(environ, local_name, high=world_size - 1),
        master_addr=_address(address, world_size),
        master_port=_number(environ, "MASTER_PORT", low=1, high=65535, default=port),
    )


def _number(
    environ: Mapping[str, str], name: str, *, low: int = 0, high: int | None = None, default: int | None = None
) -> int:
    text = environ.get(name, "" if default is None else str(default))
    value = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None
    if value is None or value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        raise ConfigError(
            f"{name}={text!r} in the environment",
            f"a whole number of at least {low}{upper}",
            "start all ranks with one torchrun or srun, or correct the variable",
        )
    return value


def _address(address: str | None, world_size: int) -> str:
    if address or (address is None and world_size == 1):
        return address or "127.0.0.1"
    raise ConfigError(
        f"{world_size} ranks and no MASTER_ADDR in the environment", "the host name of rank 0", "set MASTER_ADDR"
    )


def _first_slurm_host(environ: Mapping[str, str]) -> str | None:
    nodelist = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    return first_host(nodelist) if nodelist else None


def _slurm_port(environ: Mapping[str, str]) -> int:
    job = environ.get("SLURM_JOB_ID", "0")
    return SLURM_PORTS[int(job) % len(SLURM_PORTS)] if job.isdecimal() else DEFAULT_PORT


def _check_is_one_task(environ: Mapping[str, str]) -> None:
    """A batch script, or a shell of salloc, is one process however many tasks and nodes the job has.

    A batch script even has SLURM_PROCID=0: with the job's SLURM_NTASKS, rank 0 would wait for ever. Without this check,
    a shell of salloc would train alone, on one GPU of many.
    """
    for name in ("SLURM_NTASKS", "SLURM_NNODES"):
        if environ.get(name, "1") != "1":
            raise ConfigError(
                f"{name}={environ[name]} in a batch script or a shell of salloc, outside of a job step",
                "one process per task",
                "put srun before the command (srun -n 1 for a single process), or start it with torchrun",
            )
