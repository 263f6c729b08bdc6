"""The list of a rank with what its handlers would look up."""

import pytest

from overlap_recompute.plan.actions import COMPUTE, POST_OF, WAIT_OF, Kind, parse_action
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.schedules import Phase, RecomputeAhead

from .support import program_of

LAYOUTS = [(1, 1, 3), (2, 1, 1), (2, 1, 5), (4, 1, 2), (4, 1, 6), (2, 2, 4), (4, 2, 8), (3, 3, 6)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("forward_only", [False, True])
def test_every_instruction_knows_its_partner_and_its_message(layout: tuple[int, int, int], forward_only: bool) -> None:
    stages, chunks, microbatches = layout
    for stage in range(stages):
        program = program_of(
            stages, stage, microbatches, chunks=chunks, forward_only=forward_only, ahead=RecomputeAhead()
        )
        position = {instruction.action: index for index, instruction in enumerate(program.instructions)}
        assert len(program.forward) == chunks * microbatches
        assert len(program.backward) == (0 if forward_only else chunks * microbatches)
        for index, instruction in enumerate(program.instructions):
            kind, partner = instruction.action.kind, instruction.partner
            if kind in WAIT_OF or kind in POST_OF:
                assert partner is not None and instruction.message is not None
                assert (position[partner] > index) == (kind in WAIT_OF)
            elif kind in COMPUTE:
                passes = program.forward if kind is Kind.F else program.backward
                assert passes[instruction.number] == instruction.action
                assert partner is None or position[partner] > index
            else:
                assert kind is Kind.R and partner is None and not forward_only


def test_the_waits_behind_an_r_are_filled_and_so_are_their_receives() -> None:
    program = program_of(2, 0, 4, ahead=RecomputeAhead(phases=frozenset({Phase.STEADY})))
    filled = {str(instruction.action) for instruction in program.instructions if instruction.is_filled}
    assert filled == {"0RECV_B1", "0WAIT_RECV_B1", "0RECV_B2", "0WAIT_RECV_B2"}
    assert not any(instruction.is_filled for instruction in program_of(2, 0, 4).instructions)


def test_a_pass_without_a_peer_sends_nothing() -> None:
    last = program_of(2, 1, 2)
    partners = {str(instruction.action): str(instruction.partner) for instruction in last.instructions}
    assert partners["0F0"] == "None" and partners["0B0"] == "0SEND_B0"
    assert partners["0RECV_F1"] == "0WAIT_RECV_F1" and partners["0WAIT_RECV_F1"] == "0RECV_F1"


def test_phases_come_from_the_whole_list() -> None:
    phases = {instruction.action: instruction.phase for instruction in program_of(4, 0, 6).instructions}
    assert phases[parse_action("0WAIT_RECV_B0")] is Phase.WARM_UP
    assert phases[parse_action("0WAIT_RECV_B1")] is Phase.STEADY
    assert phases[parse_action("0WAIT_RECV_B5")] is Phase.COOL_DOWN


def test_sizes_without_a_schedule_are_refused() -> None:
    with pytest.raises(ConfigError, match="microbatches in an interleaved pipeline"):
        program_of(4, 0, 5, chunks=2)
