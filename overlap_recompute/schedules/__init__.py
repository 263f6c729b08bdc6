"""Pipeline schedules as lists of actions: pure functions from value to value, standard library only.

    grid = validate(with_recompute(with_communication(one_f_one_b(4, 8))))

docs/schedules.md tells what the actions mean to whoever runs them.
"""

from overlap_recompute.schedules.builders import interleaved_one_f_one_b, one_f_one_b, pipeline_schedule
from overlap_recompute.schedules.communication import has_communication, passes_only, with_communication
from overlap_recompute.schedules.csv_file import from_csv, read_csv, to_csv, write_csv
from overlap_recompute.schedules.execution import Costs, Span
from overlap_recompute.schedules.measures import InFlight, Timeline, in_flight_microbatches, timeline
from overlap_recompute.schedules.messages import Message, Queues, Traffic, message_of
from overlap_recompute.schedules.pictures import draw_lists, draw_timeline
from overlap_recompute.schedules.recompute import (
    Phase,
    RecomputeAhead,
    phases_of,
    with_recompute,
    without_recompute,
)
from overlap_recompute.schedules.shape import PipelineShape, shape_of
from overlap_recompute.schedules.validation import Fault, find_faults, validate

__all__ = [
    "Costs",
    "Fault",
    "InFlight",
    "Message",
    "Phase",
    "PipelineShape",
    "Queues",
    "RecomputeAhead",
    "Span",
    "Timeline",
    "Traffic",
    "draw_lists",
    "draw_timeline",
    "find_faults",
    "from_csv",
    "has_communication",
    "in_flight_microbatches",
    "interleaved_one_f_one_b",
    "message_of",
    "one_f_one_b",
    "passes_only",
    "phases_of",
    "pipeline_schedule",
    "read_csv",
    "shape_of",
    "timeline",
    "to_csv",
    "validate",
    "with_communication",
    "with_recompute",
    "without_recompute",
    "write_csv",
]
