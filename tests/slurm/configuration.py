"""The configuration files of the cluster that the tests bring up."""

from collections.abc import Mapping, Sequence
from pathlib import Path

CLUSTER_NAME = "testcluster"
GPUS_PER_NODE = 2
CPUS_PER_NODE = 4
"""What Slurm believes; the nodes share the cores of this machine (SlurmdParameters=config_overrides)."""

REQUEUE_WAIT_S = 5
"""How long a requeued job waits before it starts again: the life of a credential, 120 s by default. This is
the least that Slurm takes; it falls back to the default without a word."""


def slurm_conf(folder: Path, addresses: Mapping[str, str]) -> str:
    """The text of slurm.conf.

    Args:
        folder: where logs, state and the munge socket are.
        addresses: IP address by host name; the first host has the controller, the others are nodes.
    """
    controller, *nodes = addresses
    settings = {
        "ClusterName": CLUSTER_NAME,
        "SlurmctldHost": f"{controller}({addresses[controller]})",
        "SlurmUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/munge.socket,cred_expire={REQUEUE_WAIT_S}",
        "CryptoType": "crypto/munge",
        "StateSaveLocation": f"{folder}/state",
        "SlurmdSpoolDir": f"{folder}/spool-%n",
        "SlurmctldPidFile": f"{folder}/slurmctld.pid",
        "SlurmdPidFile": f"{folder}/slurmd-%n.pid",
        "SlurmdParameters": "config_overrides",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "MpiDefault": "none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU",
        "SchedulerParameters": "sched_interval=1,sched_min_interval=100000,bf_interval=1",
        "SlurmctldTimeout": "30",
        "SlurmdTimeout": "60",
        "KillWait": "30",
        "CompleteWait": "0",
        "ReturnToService": "2",
        "GresTypes": "gpu",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
    }
    lines = [f"{name}={value}" for name, value in settings.items()]
    lines += [
        f"NodeName={node} NodeHostname={node} NodeAddr={addresses[node]} CPUs={CPUS_PER_NODE} RealMemory=4000 "
        f"Gres=gpu:{GPUS_PER_NODE}"
        for node in nodes
    ]
    lines += [
        f"PartitionName={name} Nodes={','.join(nodes)} Default={default} PriorityTier={tier} MaxTime=UNLIMITED State=UP"
        for name, default, tier in (("main", "YES", 1), ("urgent", "NO", 2))  # a job of urgent takes main's nodes
    ]
    lines.append("")
    return "\n".join(lines)


def gres_conf(folder: Path, nodes: Sequence[str]) -> str:
    """The text of gres.conf: null devices that play GPUs, so that scripts which ask for GPUs get some."""
    files = f"{folder}/gpu[0-{GPUS_PER_NODE - 1}]"
    return "".join(f"NodeName={node} Name=gpu File={files}\n" for node in nodes)
