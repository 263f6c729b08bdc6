"""One self-contained HTML page about simulated iterations (docs/report.md)."""

from overlap_recompute.report.page import Arm, Report, render

__all__ = ["Arm", "Report", "render"]
