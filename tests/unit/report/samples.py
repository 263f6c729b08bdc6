"""A report with two arms and a small timeline."""

import dataclasses

from overlap_recompute.report import Arm, Report
from overlap_recompute.simulator.timeline import Lane, MemoryPoint, SimulationResult, Span, StageResult, WindowUse
from tests.unit.plan.samples import sample_plan, sample_profile

_GIB = 1 << 30


def sample_report() -> Report:
    """Hostile names included: whatever is shown must be escaped."""
    profile = dataclasses.replace(sample_profile(), model='GPT <script>alert(1)</script> & "co"')
    plan = sample_plan(profile)
    result = SimulationResult(
        iteration_us=6100.0, bubble_fraction=0.2, tokens_per_s=7000.0, tflops_per_gpu=0.0, mfu=0.41,
        stages=(_stage(0), _stage(1)), spans=tuple(span for stage in (0, 1) for span in _spans(stage)),
        update_us=100.0, microbatches=4, simulated_microbatches=4,
    )  # fmt: skip
    slower = dataclasses.replace(result, iteration_us=7000.0, tokens_per_s=6000.0)
    return Report(
        title="Sample model on two stages",
        profile=profile,
        arms=(Arm(name="full", plan=plan, result=slower), Arm(name="heu", plan=plan, result=result)),
        drawn="heu",
        left_out=(("none", "needs 0.3 GiB more than the budget on stage 0"),),
        budget_bytes=int(2.2 * _GIB),
        command="overlap-recompute report profile.json --memory-gib 2.2 --output report.html",
        made="2026-01-01",
    )


def _stage(stage: int) -> StageResult:
    return StageResult(
        stage=stage, compute_us=3600.0, hidden_us=240.0, exposed_us=240.0, wait_us=300.0,
        windows=(WindowUse("pp_wait", 4, 400.0, 240.0), WindowUse("tp_forward", 8, 320.0, 0.0)),
        memory=tuple(MemoryPoint(step * 2.0, (1 + step % 7) * _GIB // 4) for step in range(3000)),
        peak_bytes=2 * _GIB,
    )  # fmt: skip


def _spans(stage: int) -> list[Span]:
    spans, time_us = [], stage * 400.0

    def add(lane: Lane, name: str, length_us: float, hidden: bool = False) -> None:
        end_us = time_us + length_us
        spans.append(Span(stage=stage, lane=lane, name=name, begin_us=time_us, end_us=end_us, hidden=hidden))

    for number in range(4):
        add("compute", f"0F{number}", 300.0)
        add("tp", f"0F{number}.all_reduce", 60.0)
        time_us += 300.0
        add("wait", f"0WAIT_RECV_B{number}", 100.0)
        add("recompute", f"R(L1.act)0B{number}", 60.0, hidden=True)
        time_us += 100.0
        add("recompute", f"R(L0.fc)0B{number}", 60.0)
        time_us += 60.0
        add("compute", f"0B{number}", 600.0)
        add("pp", f"0SEND_B{number}", 50.0)
        time_us += 600.0
    return spans
