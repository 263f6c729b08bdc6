"""The command that trains with a plan, from the command that was profiled."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.split import layout_text

PROGRAM = "pretrain_gpt.py"
LAYOUT = "--pipeline-model-parallel-layout"
STAGES = "--pipeline-model-parallel-size"
_REPLACED = (
    LAYOUT,
    STAGES,
    "--num-layers-per-virtual-pipeline-stage",
    "--num-virtual-stages-per-pipeline-rank",
    "--decoder-first-pipeline-num-layers",
    "--decoder-last-pipeline-num-layers",
)
_OVERLAP, _STOCK = "--overlap-recompute", "--recompute-"


def launch_command(profile: Profile, plan: Plan, path: Path) -> tuple[str, ...]:
    """The words of a torchrun command line; empty when the profile was not taken from a run of the trainer.

    Args:
        profile: whose run is repeated.
        plan: to train with.
        path: of the plan.
    """
    words = shlex.split(profile.origin.command)
    places = [index for index, word in enumerate(words) if Path(word).name == PROGRAM]
    if profile.origin.source != "measured" or not places:
        return ()
    layout = plan.layout
    ranks = layout.tensor_parallel * layout.pipeline_parallel * layout.data_parallel * layout.context_parallel
    kept = _without_replaced(words[places[0] + 1 :])
    pipeline = [STAGES, str(layout.pipeline_parallel), LAYOUT, layout_text(layout.split)]
    return (
        *("torchrun", "--nproc-per-node", str(ranks), words[places[0]]),
        *kept,
        *(pipeline if layout.pipeline_parallel > 1 or layout.chunks > 1 else ()),
        *("--overlap-recompute", "--overlap-recompute-plan", str(path)),
    )


def _without_replaced(words: Sequence[str]) -> Iterator[str]:
    """The words without flags that the plan replaces, and their values."""
    dropping = False
    for word in words:
        if word.startswith("--"):
            name = word.partition("=")[0]
            dropping = name in _REPLACED or name.startswith((_OVERLAP, _STOCK))
        if not dropping:
            yield word
