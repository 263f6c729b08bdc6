"""What `overlap-recompute schedule --help` says."""

from collections.abc import Mapping
from typing import Any

DESCRIPTION = """\
Print the pipeline schedule of a layout: who runs which forward (F) and backward pass (B) when, how many microbatches
each rank holds, and how much of the step is bubble.

The order of the passes on each rank is that of Megatron-Core 0.16.1: 1F1B, or interleaved 1F1B with --vpp above 1.
An action is written CHUNK KIND MICROBATCH: 1B3 is the backward pass of the rank's model chunk 1 on microbatch 3.

With --recompute every backward pass needs a recompute of its activations first. The chosen waits for a receive are
filled with it, ahead of need (R); what is left is exposed and marked R!. Between a forward and a backward pass of the
last rank there is nothing to wait for, so all of its recompute is exposed: let it keep its activations.
"""

EPILOG = """\
examples:
  overlap-recompute schedule --pp 4 --microbatches 8
      1F1B on 4 ranks
  overlap-recompute schedule --pp 4 --vpp 2 --microbatches 8 --recompute all
      interleaved; recompute ahead in every wait, hidden and exposed recompute by rank
  overlap-recompute schedule --pp 4 --microbatches 8 --recompute on-demand
      the same recompute, none of it ahead: the difference is what overlap is worth on an abstract clock
  overlap-recompute schedule --pp 2 --microbatches 4 --order all
      every action of each rank, with sends, receives and waits, as the trainer runs them
  overlap-recompute schedule --pp 2 --microbatches 4 --csv mine.csv
  overlap-recompute schedule --from-csv mine.csv
      save a schedule, change it by hand, and have it checked: <-- ERROR HERE marks what cannot run
"""

FLAGS: Mapping[str, Mapping[str, Any]] = {
    "--pp": {"metavar": "N", "help": "pipeline-parallel size"},
    "--vpp": {"metavar": "N", "help": "model chunks on each rank (virtual pipeline size); above 1: interleaving (1)"},
    "--microbatches": {
        "metavar": "N",
        "help": "microbatches of a step; with interleaving a multiple of --pp, unless --group-size allows for others",
    },
    "--group-size": {
        "metavar": "N",
        "help": "with interleaving: microbatches that a chunk runs before the next chunk does, from --pp to "
        "--microbatches; a last, smaller group needs at least --pp microbatches (the value of --pp)",
    },
    "--forward-only": {"action": "store_true", "help": "the schedule of an evaluation"},
    "--recompute": {
        "metavar": "WHERE",
        "help": "recompute activations: ahead, in the waits of warmup, steady, cooldown (comma-separated) or all; or "
        "on-demand, never ahead",
    },
    "--recompute-ahead": {
        "metavar": "N",
        "help": "how many backward passes one wait may prepare; more fills longer waits and holds more memory (1)",
    },
    "--forward-slots": {"metavar": "N", "default": "1", "help": "length of F in the picture (1)"},
    "--backward-slots": {"metavar": "N", "default": "2", "help": "length of B without recompute (2)"},
    "--recompute-slots": {"metavar": "N", "help": "length of the recompute for one B (that of F)"},
    "--transfer-slots": {"metavar": "N", "default": "0", "help": "time from send to arrival (0)"},
    "--order": {
        "metavar": "WHAT",
        "help": "print lists instead of the picture: 'only' for the order of F, B and R, 'all' with the communication",
    },
    "--csv": {"metavar": "FILE", "help": "also save all actions, one line for each rank"},
    "--from-csv": {"metavar": "FILE", "help": "read and check a schedule instead of building one"},
    "--json": {"action": "store_true", "help": "print figures and lists as JSON"},
    "--width": {"metavar": "N", "help": "characters on a line of the picture (that of the terminal)"},
}
