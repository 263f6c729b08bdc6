"""One self-contained HTML page about simulated iterations, and a real one beside them (docs/report.md)."""

from overlap_recompute.report.measured import Measured, measured_of
from overlap_recompute.report.measured_section import compared
from overlap_recompute.report.page import Arm, Report, render
from overlap_recompute.report.trace_checks import check_layout, check_model, check_plan
from overlap_recompute.report.traces import RankTrace, read_traces

__all__ = [
    "Arm",
    "Measured",
    "RankTrace",
    "Report",
    "check_layout",
    "check_model",
    "check_plan",
    "compared",
    "measured_of",
    "read_traces",
    "render",
]
