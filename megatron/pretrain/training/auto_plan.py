"""Planning in the middle of a run: on one rank, in a process of its own (docs/profile.md).

Training ranks never import the planner: its solver and its memory are none of theirs.
"""

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.config.checks.overlap import AUTO, AUTO_MEMORY
from overlap_recompute.plan.codec import from_data, write_record
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.plan_file import PLAN_VERSION, Plan
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.validation import check_plan

logger = logging.getLogger(__name__)

PLANNER = "mix"
DEVICE_SHARE = 0.9
"""Of a device's memory, when no budget is given."""
BYTES_PER_GIB = 1 << 30
LIMIT_S = 300
Share = Callable[[bytes, torch.device], list[bytes]]
"""What every rank gave, on every rank; collective."""


def plan_together(config: PretrainConfig, profile: Profile, device: torch.device, share: Share) -> Plan:
    """Plan on rank 0 and give the plan to every rank.

    Raises:
        ConfigError: on every rank, with the planner's words, where it found no plan.
    """
    mine = _ask_planner(config, profile, device) if config.world.rank == 0 else b""
    answer = json.loads(share(mine, device)[0])
    if "fault" in answer:
        raise ConfigError(
            f"{AUTO} without a plan ({answer['fault']})", "a plan for the budget", f"change {AUTO_MEMORY}"
        )
    plan = from_data(answer["plan"], Plan, PLAN_VERSION, "the plan of rank 0")
    check_plan(plan, "the plan of rank 0")
    return plan


def _ask_planner(config: PretrainConfig, profile: Profile, device: torch.device) -> bytes:
    """The plan, or why there is none, as JSON."""
    budget_gib = config.overlap.overlap_recompute_memory_gib or _device_gib(device)
    with tempfile.TemporaryDirectory(prefix="overlap-recompute-") as folder:
        source, target = Path(folder) / "profile.json", Path(folder) / "plan.json"
        write_record(source, profile)
        command = [
            sys.executable, "-m", "overlap_recompute", "plan", str(source), "--memory-gib", f"{budget_gib:.6g}",
            "--planner", PLANNER, "--no-baselines", "--output", str(target),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return json.dumps({"fault": f"the planner took more than {LIMIT_S} s"}).encode()
        if done.returncode:
            return json.dumps({"fault": done.stderr.strip()[-2000:]}).encode()
        logger.info("planned for %.3g GiB a rank with planner %s", budget_gib, PLANNER)
        return json.dumps({"plan": json.loads(target.read_text(encoding="utf-8"))}).encode()


def _device_gib(device: torch.device) -> float:
    return DEVICE_SHARE * torch.cuda.get_device_properties(device).total_memory / BYTES_PER_GIB
