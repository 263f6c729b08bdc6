"""The one text form of an action."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlap_recompute.plan.actions import (
    POST_OF,
    WAIT_OF,
    Action,
    Kind,
    ScheduleError,
    format_actions,
    parse_action,
    parse_actions,
)

actions = st.builds(Action, kind=st.sampled_from(Kind), chunk=st.integers(0, 10**6), microbatch=st.integers(0, 10**6))


@given(actions)
def test_text_form_round_trips(action: Action) -> None:
    assert parse_action(str(action)) == action


@given(st.lists(actions, max_size=5))
def test_lists_round_trip(row: list[Action]) -> None:
    assert parse_actions(format_actions(row)) == tuple(row)


def test_text_form_is_chunk_kind_microbatch() -> None:
    assert str(Action(kind=Kind.F, chunk=2, microbatch=0)) == "2F0"
    assert str(Action(kind=Kind.WAIT_RECV_B, chunk=0, microbatch=13)) == "0WAIT_RECV_B13"


@pytest.mark.parametrize(
    "text", ["", "F", "0F", "F0", "0f1", "0X1", "-1F0", "00F1", "0F01", "0 F 1", "0F1.5", "0F1 ", "٠F1"]
)
def test_other_texts_are_refused_with_their_form_and_a_hint(text: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        parse_action(text)
    assert repr(text) in str(caught.value)
    assert "expected" in str(caught.value)


def test_every_transfer_has_one_wait() -> None:
    posts = {kind for kind in Kind if kind.value.startswith(("SEND_", "RECV_"))}
    assert set(WAIT_OF) == posts
    assert {WAIT_OF[post].value for post in posts} == {f"WAIT_{post.value}" for post in posts}
    assert {wait: WAIT_OF[post] for wait, post in POST_OF.items()} == {wait: wait for wait in POST_OF}


def test_actions_and_errors_survive_pickling() -> None:
    action = parse_action("1R4")
    assert pickle.loads(pickle.dumps(action)) == action  # noqa: S301 - our own bytes
    error = ScheduleError("a", "b", "c", "picture")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert str(again) == str(error) == "found a; expected b; c.\npicture"
