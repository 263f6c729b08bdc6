"""What the handlers do, in which order, and what they leave behind."""

import pytest
import torch

from overlap_recompute.schedules import Phase, RecomputeAhead

from .support import Messages, Passes, Waits, interpreter_of, program_of


def test_actions_run_in_the_order_of_the_list_and_are_journaled() -> None:
    record: list[str] = []
    program = program_of(2, 0, 3)
    interpreter = interpreter_of(program, record)
    interpreter.run()
    assert list(interpreter.journal) == [instruction.action for instruction in program.instructions]
    assert interpreter.current is None
    sends = [event for event in record if event.startswith("send ")]
    assert [event.replace("send", "sent", 1) for event in sends] == [e for e in record if e.startswith("sent ")]
    assert record.index("0F0") < record.index(sends[0])


def test_a_send_keeps_its_data_when_the_output_is_released_at_once() -> None:
    record: list[str] = []
    interpreter = interpreter_of(program_of(2, 0, 3), record)
    interpreter.run()
    passes, transfers = interpreter.passes, interpreter.transfers
    assert isinstance(passes, Passes) and isinstance(transfers, Messages)
    assert len(passes.released) == 3 and all(output.numel() == 1 for output in passes.released)
    assert [float(tensor.mean()) for tensor in transfers.sent] == [0.0, 1.0, 2.0]


def test_the_last_stage_releases_nothing_and_an_evaluation_neither() -> None:
    for stage, forward_only in ((1, False), (0, True), (1, True)):
        interpreter = interpreter_of(program_of(2, stage, 3, forward_only=forward_only), [], stage=stage)
        interpreter.run()
        assert isinstance(interpreter.passes, Passes)
        assert not interpreter.passes.released


def test_a_stage_gets_its_input_and_the_first_one_none() -> None:
    for stage in (0, 1):
        interpreter = interpreter_of(program_of(2, stage, 2), [], stage=stage)
        interpreter.run()
        assert isinstance(interpreter.passes, Passes)
        assert [given is None for given in interpreter.passes.given.values()] == [stage == 0] * 2


def test_waits_are_offered_with_their_phase_and_what_to_recompute() -> None:
    waits = Waits()
    program = program_of(2, 0, 4, ahead=RecomputeAhead(phases=frozenset({Phase.STEADY, Phase.COOL_DOWN})))
    interpreter = interpreter_of(program, [], waits=waits)
    interpreter.run()
    assert waits.calls == [("warmup", "", 0), ("steady", "0R1", 3), ("steady", "0R2", 3), ("cooldown", "0R3", 3)]
    sums = interpreter.log.take()
    assert {phase.value: (found.waits, found.filled) for phase, found in sums.items()} == {
        "warmup": (1, 0), "steady": (2, 2), "cooldown": (1, 1),
    }  # fmt: skip
    assert all(found.length_ns > 0 for found in sums.values())
    assert all(found.waits == 0 for found in interpreter.log.take().values())
    assert isinstance(interpreter.transfers, Messages)
    assert len(interpreter.transfers.filled) == 3


def test_nobody_is_offered_a_wait_in_an_evaluation() -> None:
    waits = Waits()
    interpreter = interpreter_of(program_of(2, 1, 3, forward_only=True), [], waits=waits, stage=1)
    interpreter.run()
    assert not waits.calls
    assert interpreter.log.take()[Phase.WARM_UP].waits == 3


def test_nothing_is_followed_when_nobody_fills() -> None:
    interpreter = interpreter_of(program_of(2, 0, 4, ahead=RecomputeAhead()), [])
    interpreter.run()
    assert isinstance(interpreter.transfers, Messages)
    assert not interpreter.transfers.filled


def test_a_failing_pass_leaves_the_place_and_its_messages() -> None:
    record: list[str] = []
    interpreter = interpreter_of(program_of(2, 1, 6), record, passes=Passes(record, fails_at="0F3"), stage=1)
    with pytest.raises(ValueError, match="boom"):
        interpreter.run()
    assert str(interpreter.current) == "0F3"
    assert str(interpreter.journal[-1]) != "0F3"
    assert interpreter.sends or interpreter.receives or interpreter.inputs


def test_an_error_in_a_wait_leaves_the_receive_posted() -> None:
    waits = Waits()
    waits.error = RuntimeError("replay")
    interpreter = interpreter_of(program_of(2, 0, 4, ahead=RecomputeAhead()), [], waits=waits)
    with pytest.raises(RuntimeError, match="replay"):
        interpreter.run()
    assert str(interpreter.current) == "0WAIT_RECV_B0"
    assert len(interpreter.receives) == 1


def test_actions_are_profiler_ranges() -> None:
    with torch.profiler.profile() as profile:
        interpreter_of(program_of(2, 0, 1), []).run()
    names = {event.key for event in profile.key_averages()}
    assert {"0F0", "0WAIT_RECV_B0", "0B0"} <= names
