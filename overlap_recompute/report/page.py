"""The page: what was simulated, how the arms compare, where time and memory of each stage go, method and limits."""

from collections.abc import Sequence
from dataclasses import dataclass

from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.split import layout_text
from overlap_recompute.report import pictures
from overlap_recompute.report.axes import shown
from overlap_recompute.report.decisions import decision_rows, memory_rows
from overlap_recompute.report.markup import element, table, text
from overlap_recompute.report.measured import Measured
from overlap_recompute.report.measured_section import section
from overlap_recompute.report.style import CSS
from overlap_recompute.report.timelines import timeline
from overlap_recompute.simulator.timeline import SimulationResult

_GIB = 1 << 30
_BASES = ("stock-full", "full")
"""Arms that the others are compared with; the first that is there."""
SIMULATED = (
    "Every figure {where} comes from a simulation of the schedule's action lists with the costs of the profile; "
    "nothing here was measured while the page was made."
)
LIMITS = (
    "An analytic profile prices operations by roofline and transfers by alpha and beta. A real device differs by its "
    "kernels, clocks, temperature and neighbours.",
    "All tensor-parallel ranks of a stage are taken to be alike, and all microbatches to cost the same.",
    "The docs/simulator.md of the project tells what the model leaves out, benchmarks/simulated_real.md how far it was "
    "from real runs.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to run the model, simulated."""

    name: str
    """The planner's, for people."""
    plan: Plan
    result: SimulationResult
    """Of the arm that is drawn: with a timeline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a page is made of."""

    title: str
    profile: Profile
    arms: tuple[Arm, ...]
    """To compare; those that fit into the budget."""
    drawn: str
    """Name of the arm whose timeline is drawn."""
    left_out: tuple[tuple[str, str], ...]
    """(name, reason) of arms that could not be run."""
    budget_bytes: int
    """0: none was given."""
    command: str
    made: str
    """Date."""
    measured: Measured | None = None
    """A real run of the drawn arm's plan."""


def render(report: Report) -> str:
    """The HTML page: one file, no request to anywhere."""
    arm = next(arm for arm in report.arms if arm.name == report.drawn)
    parts = [
        *_head(report, arm),
        *_comparison(report),
        *_timeline(arm),
        *(section(report.measured, arm.result) if report.measured is not None else []),
        *_memory(report, arm),
        *_stages(arm),
        *_decisions(report, arm),
        *_method(report),
    ]
    page_head = element("title", text(report.title)) + element("style", CSS)
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    body = element("body", element("main", *parts))
    return f'<!doctype html>\n<html lang="en"><head>{meta}{page_head}</head>{body}</html>\n'


def _head(report: Report, arm: Arm) -> list[str]:
    profile, layout, result = report.profile, arm.plan.layout, arm.result
    batch = layout.microbatches * layout.micro_batch * layout.data_parallel
    facts = (
        f"{profile.model}; {profile.origin.hardware}; tensor {layout.tensor_parallel} x pipeline "
        f"{layout.pipeline_parallel} x data {layout.data_parallel}"
        f"{f', {layout.chunks} model chunks a stage' if layout.chunks > 1 else ''}; "
        f"{batch} sequences of {layout.sequence} tokens an iteration, {layout.micro_batch} a microbatch"
    )
    origin = profile.origin
    badge = f"simulated from a profile that was {'measured' if origin.source == 'measured' else 'computed (analytic)'}"
    recompute_us = sum(stage.recompute_us for stage in result.stages)
    hidden = sum(stage.hidden_us for stage in result.stages) / recompute_us if recompute_us else None
    tiles = [
        (f"{shown(result.iteration_us / 1000)} ms", f"iteration with {arm.name}"),
        (shown(result.tokens_per_s), "tokens a second"),
        *([(f"{result.mfu:.1%}", "model FLOP utilization")] if result.mfu else []),
        ("none" if hidden is None else f"{hidden:.1%}", "of the recompute is hidden"),
        (f"{result.bubble_fraction:.1%}", "of the time stages wait for stages"),
        (f"{result.peak_bytes / _GIB:,.4g} GiB", "peak memory of the fullest stage"),
    ]
    cells = [
        element("div", element("b", text(value)), element("span", text(name)), class_="tile") for value, name in tiles
    ]
    note = [element("p", text(origin.note), class_="soft")] if origin.note else []
    return [
        element("h1", text(report.title)),
        element("p", element("span", text(badge), class_="badge")),
        element("p", text(facts)),
        *note,
        element("div", *cells, class_="tiles"),
    ]


def _comparison(report: Report) -> list[str]:
    named = {arm.name: arm for arm in report.arms}
    base = next((named[name] for name in _BASES if name in named), None)
    header = [
        "arm",
        "iteration",
        "tokens/s",
        "" if base is None else f"x {base.name}",
        "bubble",
        "hidden",
        "exposed",
        "peak",
    ]
    rows = []
    for arm in sorted(report.arms, key=lambda arm: arm.result.iteration_us):
        result = arm.result
        hidden_us = sum(stage.hidden_us for stage in result.stages) / len(result.stages)
        exposed_us = sum(stage.exposed_us for stage in result.stages) / len(result.stages)
        rows.append(
            [
                arm.name,
                f"{result.iteration_us / 1000:,.2f} ms",
                f"{result.tokens_per_s:,.0f}",
                "" if base is None else f"{base.result.iteration_us / result.iteration_us:.3f}",
                f"{result.bubble_fraction:.1%}",
                f"{hidden_us / 1000:,.2f} ms",
                f"{exposed_us / 1000:,.2f} ms",
                f"{result.peak_bytes / _GIB:,.2f} GiB",
            ]
        )
    budget = f" in {report.budget_bytes / _GIB:,.2f} GiB a rank" if report.budget_bytes else ""
    ordered = sorted(report.arms, key=lambda arm: arm.result.iteration_us)
    drawing = pictures.bars(
        [arm.name for arm in ordered], [arm.result.tokens_per_s for arm in ordered], "tokens/s", "Throughput by arm"
    )
    left_out = [element("li", text(f"{name}: {reason}")) for name, reason in report.left_out]
    return [
        element("h2", text(f"Arms{budget}")),
        table(header, rows, "Same runtime and schedule for all. Hidden and exposed recompute: mean of the stages."),
        element("figure", drawing),
        *([element("p", "Not possible here:"), element("ul", *left_out)] if left_out else []),
    ]


def _timeline(arm: Arm) -> list[str]:
    close = "Two passes in the middle of it, piece by piece: windows, what fills them, and under each stage its links."
    names = pictures.stage_names(len(arm.result.stages))
    return [element("h2", text(f"Timeline of {arm.name}")), *timeline(arm.result.spans, names, close)]


def _memory(report: Report, arm: Arm) -> list[str]:
    header, rows = memory_rows(arm.plan)
    return [
        element("h2", text("Memory")),
        element(
            "figure",
            pictures.memory(arm.result, report.budget_bytes),
            element(
                "figcaption",
                text("GiB of each stage over the iteration (time in ms), from the lowest up."),
            ),
        ),
        table(header, rows, "The planner's table, GiB: what the peak is made of."),
    ]


def _stages(arm: Arm) -> list[str]:
    header = ["stage", "compute", "hidden", "exposed", "waits"]
    rows = [
        [f"stage {stage.stage}"]
        + [f"{us / 1000:,.2f} ms" for us in (stage.compute_us, stage.hidden_us, stage.exposed_us, stage.wait_us)]
        for stage in arm.result.stages
    ]
    windows = [
        [f"stage {stage.stage}, {use.kind}", f"{use.count}", f"{use.length_us / 1000:,.2f} ms", f"{share:.1%}"]
        for stage in arm.result.stages
        for use in stage.windows
        for share in [use.filled_us / use.length_us if use.length_us else 0.0]
    ]
    return [
        element("h2", text("Where each stage's time goes")),
        table(header, rows, "One iteration, update left out."),
        table(["windows", "number", "length", "filled"], windows, "Waits that recompute may use, together."),
    ]


def _decisions(report: Report, arm: Arm) -> list[str]:
    rows = decision_rows(arm.plan)
    return [
        element("h2", text("Decisions")),
        element("p", text("Layers: "), element("code", text(layout_text(arm.plan.layout.split)))),
        table(["layers", "recomputed", "prefetch cap"], rows, f"Made by the planner {arm.plan.planner}.", words=True),
    ]


def _method(report: Report) -> list[str]:
    origin = report.profile.origin
    where = "on this page" if report.measured is None else "outside of the section Measured"
    software = ", ".join(f"{name} {version}" for name, version in origin.software)
    facts: Sequence[str] = [
        f"Profile: {origin.source}, {origin.hardware}, {origin.taken}{', ' + software if software else ''}.",
        "The simulator runs the action lists of the runtime's own schedules: 1F1B or interleaved 1F1B with sends, "
        "receives and waits, over one compute resource, one tensor-parallel link and two pipeline links a stage.",
        f"Made {report.made} by:",
    ]
    return [
        element("h2", text("Method and limits")),
        *[element("p", text(fact)) for fact in facts],
        element("pre", text(report.command)),
        element("ul", *[element("li", text(limit)) for limit in (SIMULATED.format(where=where), *LIMITS)]),
    ]
