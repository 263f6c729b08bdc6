"""One rank of the journal tests: what is replayed, which collectives run, what is kept, which windows are used.

Played by overlap_equality.py, in the process groups of its layout. Fails an assertion.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from overlap_recompute.plan.kept_bytes import LayerShape, kept_bytes
from overlap_recompute.plan.layer_units import LAYER_UNITS
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.runtime import Journal, Kind
from overlap_recompute.schedules import Phase
from tests.distributed.overlap_support import CPU, GPT, LLAMA, MOE, batches, build, config_of
from tests.distributed.overlap_windows import WindowsByName, slow_link

from megatron.core import parallel_state  # isort: skip - after the platform
from megatron.overlap.session import OverlapSession  # isort: skip
from megatron.overlap.figures import StepFigures  # isort: skip
from megatron.pretrain.training.evaluate import evaluate  # isort: skip
from megatron.pretrain.training.overlap import open_overlap  # isort: skip
from megatron.pretrain.training.pipeline import open_pipeline  # isort: skip
from megatron.pretrain.training.state import TrainingState  # isort: skip
from megatron.pretrain.training.step import TrainStep  # isort: skip

ON = "--overlap-recompute --overlap-recompute-prefetch-mib 100"
KEEPS = "--overlap-recompute --overlap-recompute-policy none"
"""What a run without recompute does, and visible: upstream binds some collectives by name."""
TP2, PP2, PP4 = "--tensor-model-parallel-size 2", "--pipeline-model-parallel-size 2", "--pipeline-model-parallel-size 4"
MICROBATCHES, LAYERS, STEPS = 2, 2, 2
COLLECTIVES = ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single")
GPT_SHAPE = LayerShape(
    sequence=16, micro_batch=2, hidden=32, ffn_hidden=128, heads=4, groups=4, channels=8, element_bytes=4, biased=True,
    rms_norm=False, rotary=False, gated=False, fused_activation=True, tensor_parallel=2,
)  # fmt: skip
LINEARS_FLOPS = 2 * (2 * 16) * 32 * (3 * 32 + 128) // 2
"""Of linear_qkv and linear_fc1 on one of two ranks: what a replay repeats, besides attention, which is not counted."""
LLAMA_SHAPE = replace(GPT_SHAPE, ffn_hidden=64, groups=2, rms_norm=True, rotary=True, gated=True, biased=False)


class Observed:
    """What one run of two steps did, and an evaluation after them.

    Args:
        flags: of the run.
        at_most: units that one window takes, so that the first ones leave something for the others.
    """

    def __init__(self, flags: str, at_most: int | None = None) -> None:
        self.config = config_of(flags, "--eval-iters 1")
        self.journal, self.reports, self.windows, self.delayed_ns = Journal(), [], [], []
        self.collectives: Counter[str] = Counter()
        self.in_replays = 0
        self.by_name = WindowsByName(at_most)
        state = build(self.config)
        with open_overlap(self.config, state.model, CPU) as opened:
            settings = opened.settings if opened is not None else None
        session = OverlapSession(settings, state.model, self.journal) if settings is not None else None
        if session is not None:
            self._listen(session)
        restore = self._count(session)
        waits = session.pipeline_waits if session is not None else None
        try:
            with open_pipeline(self.config, CPU, waits) as schedule, self.by_name:
                step = TrainStep(self.config, overlap=session, forward_backward=schedule)
                with FlopCounterMode(display=False) as counter:
                    for _ in range(STEPS):
                        step(state, [batches(self.config) for _ in state.model])
                self.flops = counter.get_total_flops() // STEPS
                self._evaluate(state, schedule, session)
        finally:
            restore()
            if session is not None:
                session.close()

    def _evaluate(self, state: TrainingState, schedule: Any, session: OverlapSession | None) -> None:
        """An evaluation computes, and communicates, as if nothing were attached."""
        events, opened, collectives = len(self.journal.events), self.by_name.opened.copy(), self.collectives.copy()
        iterators = [batches(self.config) for _ in state.model]
        self.evaluation = evaluate(self.config, state, iterators, schedule).loss
        self.in_evaluation = self.collectives - collectives
        self.collectives = collectives
        assert len(self.journal.events) == events and self.by_name.opened == opened
        assert session is None or not (session.runtime.ledger.held_bytes or session.runtime.queue.microbatches())

    def _listen(self, session: OverlapSession) -> None:
        add = session.figures.add

        def listening(step: StepFigures) -> None:
            self.reports.append(step.report)
            self.windows.append(step.windows)
            self.delayed_ns.append(step.delayed_ns)
            add(step)

        session.figures.add = listening  # type: ignore[method-assign]

    def _count(self, session: OverlapSession | None) -> Callable[[], None]:
        """Count the collectives over groups of two ranks while gradients are computed."""
        stock = {name: getattr(torch.distributed, name) for name in COLLECTIVES}

        def counting(name: str) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                self.collectives[name] += 1
                self.in_replays += session is not None and session.runtime.replaying
                work = stock[name](*args, **options)
                self.by_name.launched(work, name)
                return work

            return call

        for name in COLLECTIVES:
            setattr(torch.distributed, name, counting(name))
        return lambda: [setattr(torch.distributed, name, function) for name, function in stock.items()] and None

    def places(self, kind: Kind) -> Counter[tuple[Any, ...]]:
        return Counter(event[1:5] for event in self.journal.of(kind))

    def window_sums(self, kind: WindowKind) -> tuple[int, int]:
        """Windows of a step, and units recomputed in them."""
        sums = self.windows[-1][kind]
        return sums.windows, sums.units


def replayed_once(seen: Observed, units: set[str]) -> None:
    """Each dropped unit once per microbatch, before its first use, and nothing else."""
    begun = seen.places(Kind.REPLAY_BEGIN)
    calls = [(unit, call) for unit in units for call in range(2 if unit == "rotary" else 1)]
    expected = {
        (unit, layer, (0, 0, number), call)
        for unit, call in calls for layer in range(LAYERS) for number in range(MICROBATCHES)
    }  # fmt: skip
    assert begun == Counter(dict.fromkeys(expected, STEPS)), begun
    assert seen.places(Kind.DROP) == begun
    present: set[tuple[Any, ...]] = set()
    for event in seen.journal.events:
        if event.kind is Kind.REPLAY_END:
            present.add(event[1:5])
        elif event.kind is Kind.RELEASE:
            present.discard(event[1:5])
        assert event.kind is not Kind.USE or event[1:5] in present, event
    assert not present, "every handle is consumed"


def bytes_are_those_of_the_formula(seen: Observed, shape: LayerShape, units: set[str]) -> None:
    for report in seen.reports:
        layers = [layer for layer in report.layers if layer.layer >= 0]
        assert len(layers) == LAYERS * MICROBATCHES
        for layer in layers:
            assert layer.kept_bytes == kept_bytes(shape, units), (layer, kept_bytes(shape, units))


def tensor_parallel() -> None:
    case = f"--global-batch-size {2 * MICROBATCHES} {TP2}"
    units = set(LAYER_UNITS) - {"rotary"}
    for sequence_parallel in (False, True):
        flags = f"{GPT} {case}" + " --sequence-parallel" * sequence_parallel
        plain = Observed(f"{flags} {KEEPS}")
        with slow_link():
            seen = Observed(f"{flags} {ON}")
        droppable = units - {"linear_qkv", "linear_fc1"} if sequence_parallel else units
        replayed_once(seen, droppable)
        assert seen.in_replays == 0
        assert seen.collectives == plain.collectives, (seen.collectives, plain.collectives)
        untouched = Observed(flags)
        assert seen.evaluation == plain.evaluation == untouched.evaluation is not None
        assert seen.in_evaluation == plain.in_evaluation
        assert seen.in_evaluation["all_reduce"] == untouched.in_evaluation["all_reduce"] > 0
        shape = replace(GPT_SHAPE, sequence_parallel=sequence_parallel)
        bytes_are_those_of_the_formula(seen, shape, droppable)
        windows, filled = seen.window_sums(WindowKind.TP_BACKWARD)
        assert filled > 0, "nothing was recomputed in a window"
        assert seen.reports[-1].hidden_replays == filled
        if not sequence_parallel:
            # Of a layer two in each direction; of the embedding one, of the loss three, of the logits' input one. The
            # windows leave out the loss, whose sums are over vocabularies and short.
            of_a_step = {name: count / STEPS for name, count in plain.collectives.items()}
            assert seen.window_sums(WindowKind.TP_FORWARD)[0] == MICROBATCHES * (2 * LAYERS + 1)
            assert windows == MICROBATCHES * (2 * LAYERS + 1)
            assert of_a_step["all_reduce"] >= MICROBATCHES * (4 * LAYERS + 5)
        else:
            assert seen.window_sums(WindowKind.TP_FORWARD)[0] == MICROBATCHES * (4 * LAYERS + 2)
        serialized = Observed(f"{flags} {ON} --overlap-recompute-serialize")
        assert serialized.window_sums(WindowKind.TP_BACKWARD) == (windows, 0)
        replayed_flops = 0 if sequence_parallel else LAYERS * MICROBATCHES * LINEARS_FLOPS
        assert seen.flops == serialized.flops == plain.flops + replayed_flops
        assert plain.flops == untouched.flops
        replayed_once(serialized, droppable)
    seen = Observed(f"{LLAMA} {case} {ON}")
    replayed_once(seen, set(LAYER_UNITS))
    bytes_are_those_of_the_formula(seen, LLAMA_SHAPE, set(LAYER_UNITS))
    kept = Observed(f"{LLAMA} {case} {ON} --overlap-recompute-policy linear_fc1+rotary")
    replayed_once(kept, {"linear_fc1", "rotary"})
    bytes_are_those_of_the_formula(kept, LLAMA_SHAPE, {"linear_fc1", "rotary"})


def experts() -> None:
    plain = Observed(f"{EXPERTS} {KEEPS}")
    with slow_link():
        seen = Observed(f"{EXPERTS} {ON}")
    assert seen.collectives == plain.collectives
    assert seen.in_replays == 0
    windows, filled = seen.window_sums(WindowKind.EP)
    assert windows > 0 and filled > 0, (windows, filled)
    assert {place[0] for place in seen.places(Kind.REPLAY_BEGIN)} >= {"experts.0.activation", "experts.1.linear_fc1"}
    assert set(seen.places(Kind.REPLAY_BEGIN).values()) == {STEPS}


def pipeline() -> None:
    """Two stages of two ranks under our own schedule: every kind of window but that of experts."""
    flags = f"{GPT} {TP2} {PP2} --global-batch-size 8 --schedule-impl overlap"
    plain, seen = Observed(f"{flags} {KEEPS}"), Observed(f"{flags} {ON}")
    assert seen.collectives == plain.collectives
    assert seen.evaluation == plain.evaluation
    assert set(seen.places(Kind.REPLAY_BEGIN).values()) == {STEPS}
    assert seen.places(Kind.REPLAY_BEGIN) == seen.places(Kind.FORWARD), "all units are dropped"
    assert seen.window_sums(WindowKind.PP_WAIT)[0] == 4
    serialized = Observed(f"{flags} {ON} --overlap-recompute-serialize")
    assert [serialized.window_sums(kind)[1] for kind in WindowKind] == [0] * len(WindowKind)
    assert serialized.places(Kind.REPLAY_BEGIN) == seen.places(Kind.REPLAY_BEGIN)
    every_collective_fills_its_windows(flags)
    every_phase_fills_its_waits(flags)


def every_collective_fills_its_windows(flags: str) -> None:
    """In the forward pass they refill the microbatch that runs backward next; on the last stage none waits for that."""
    expected = {"": ["all_reduce"], "--sequence-parallel": ["all_gather_into_tensor", "reduce_scatter_tensor"]}
    for more, names in expected.items():
        found = Observed(f"{flags} {more} {ON}", at_most=1).by_name
        for name in names:
            assert found.filled[WindowKind.TP_BACKWARD, name] > 0, (more, found.filled)
            assert found.opened[WindowKind.TP_FORWARD, name] > 0, (more, found.opened)
            if parallel_state.is_pipeline_first_stage():
                assert found.filled[WindowKind.TP_FORWARD, name] > 0, (more, found.filled)


def every_phase_fills_its_waits(flags: str) -> None:
    found = Observed(f"{flags} {ON} --overlap-recompute-windows pp_wait", at_most=2).by_name
    if parallel_state.is_pipeline_first_stage():
        assert all(found.filled[WindowKind.PP_WAIT, phase.name] > 0 for phase in Phase), found.filled
    assert {kind for kind, _ in +found.filled} <= {WindowKind.PP_WAIT}


def middle_stages() -> None:
    """A stage between others waits for activations as well as for gradients, and fills both."""
    flags = f"{GPT} --num-layers 4 {PP4} --global-batch-size 12 --schedule-impl overlap"
    found = Observed(f"{flags} {ON} --overlap-recompute-windows pp_wait", at_most=2).by_name
    if not (parallel_state.is_pipeline_first_stage() or parallel_state.is_pipeline_last_stage()):
        assert all(found.filled[WindowKind.PP_WAIT, phase.name] > 0 for phase in Phase), found.filled


EXPERTS = f"{MOE} --expert-model-parallel-size 2 --global-batch-size {4 * MICROBATCHES}"
CHECKS = {"TP2": tensor_parallel, "EP2": experts, "TP2xPP2": pipeline, "PP4": middle_stages}
