"""The run as one JSON object, for programs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from overlap_recompute.cli.watching.alarms import Alarm
from overlap_recompute.cli.watching.history import Glance

SCHEMA = "watch/1"


def as_update(run: str, glance: Glance, alarms: Sequence[Alarm]) -> dict[str, Any]:
    """Return what a program may want; times in the unit of the names, null for what was not measured."""
    return {
        "schema": SCHEMA,
        "run": run,
        "state": glance.standing.value,
        "age_s": round(glance.age_s, 3),
        "starts": len(glance.starts),
        "unreadable_lines": glance.unreadable,
        "alarms": [asdict(alarm) for alarm in alarms],
        "latest": None if glance.latest is None else asdict(glance.latest),
        "evaluation": None if glance.evaluation is None else asdict(glance.evaluation),
        "event": None if glance.event is None else asdict(glance.event),
    }


def as_line(update: Mapping[str, Any]) -> str:
    """One line of strict JSON: a number that is not finite becomes "nan", "inf" or "-inf", as in a metrics file."""
    return json.dumps(_strict(update), allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in value]
    return value
