"""What `overlap-recompute watch --help` says."""

from collections.abc import Mapping
from typing import Any

DESCRIPTION = """\
Watch a run through its metrics file: progress, loss, speed, hidden and exposed recompute, how full the windows are,
memory, predictions beside measurements, and alarms. The run is not touched; it may be started later or resumed.

RUN_DIR is the folder that holds metrics.jsonl (--save, or where --metrics-file points), or the file itself.
"""

EPILOG = """\
An alarm is raised when no line arrives for --stall-factor times the usual, when a loss was not finite, and when exposed
recompute, windows or the iteration drift from the prediction or from the run's own earlier median (docs/operations.md).

exit status: 0; 1 when an alarm stood in the last picture; 2 for a fault of the command line; 130 after Ctrl-C

examples:
  overlap-recompute watch runs/a
  overlap-recompute watch runs/a --once
  overlap-recompute watch runs/a --json --until-done | jq .latest.loss
  overlap-recompute watch runs/a --prometheus-port 9400
"""

POSITIONAL: Mapping[str, Any] = {"metavar": "RUN_DIR", "help": "the run's folder, or its metrics file"}

FLAGS: Mapping[str, Mapping[str, Any]] = {
    "--once": {
        "action": "store_true",
        "help": "one picture, then end; also what happens when standard output is no terminal and none of --json, "
        "--until-done and --prometheus-port is given",
    },
    "--json": {"action": "store_true", "help": "print one JSON object per change instead of a picture"},
    "--until-done": {"action": "store_true", "help": "end when the run has ended"},
    "--interval-s": {"metavar": "S", "default": "1", "help": "seconds between looks at the file (1)"},
    "--alarm-threshold": {"metavar": "X", "default": "0.2", "help": "drift that raises an alarm, as a fraction (0.2)"},
    "--alarm-window": {
        "metavar": "N",
        "default": "5",
        "help": "last log lines whose median is judged, and fewest earlier ones to compare with (5)",
    },
    "--stall-factor": {
        "metavar": "N",
        "default": "10",
        "help": "a run is stalled after N times the usual time between its lines, at least 5 s (10)",
    },
    "--prometheus-port": {"metavar": "PORT", "help": "serve /metrics for Prometheus; 0: any free port"},
    "--prometheus-host": {
        "metavar": "HOST",
        "default": "127.0.0.1",
        "help": "address to serve at (127.0.0.1); any other than this machine's own lets others read the figures",
    },
    "--width": {"metavar": "N", "help": "columns of the picture, at least 40 (those of the terminal)"},
}
