"""Replays are cut out of the marks of an iteration: what is left is an iteration without them."""

import random

import pytest

from megatron.overlap.measuring.asides import without_asides
from megatron.overlap.measuring.iterations import Samples
from megatron.overlap.measuring.marks import At, Communication, Mark
from overlap_recompute.plan.windows import WindowKind

FORWARD = Communication(WindowKind.TP_FORWARD, "all_reduce", 64, False)
BACKWARD = Communication(WindowKind.TP_BACKWARD, "all_reduce", 64, False)
READS = {0: {"activation": ("linear_fc1",)}}
Entry = tuple[At, str, int, float, Communication | None]

PLAIN: tuple[Entry, ...] = (
    (At.ITERATION, "", -1, 0.0, None), (At.PASS, "", 0, 2.0, None), (At.MODEL, "", 0, 3.0, None),
    (At.LAYER, "", 0, 5.0, None), (At.UNIT, "linear_fc1", 0, 6.0, None), (At.UNIT_END, "linear_fc1", 0, 16.0, None),
    (At.UNIT, "activation", 0, 17.0, None), (At.UNIT_END, "activation", 0, 20.0, None),
    (At.WAIT, "", -1, 30.0, FORWARD), (At.WAIT_END, "", -1, 50.0, FORWARD), (At.LAYER_END, "", 0, 52.0, None),
    (At.PASS_END, "", 0, 60.0, None), (At.GRAD_LAYER, "", 0, 63.0, None), (At.BACKWARD, "", 0, 64.0, None),
    (At.GRAD_UNIT, "activation", 0, 75.0, None), (At.GRAD_UNIT, "linear_fc1", 0, 79.0, None),
    (At.LAUNCH, "", -1, 81.0, BACKWARD), (At.WAIT, "", -1, 90.0, BACKWARD), (At.WAIT_END, "", -1, 110.0, BACKWARD),
    (At.GRAD_INPUT, "", 0, 112.0, None), (At.BACKWARD_END, "", 0, 120.0, None), (At.STEP_END, "", -1, 121.0, None),
    (At.OUTSIDE, "", -1, 130.0, None), (At.OUTSIDE_END, "", -1, 135.0, None), (At.ITERATION_END, "", -1, 150.0, None),
)  # fmt: skip


def marks_of(entries: list[Entry] | tuple[Entry, ...]) -> tuple[list[Mark], list[float]]:
    log = [Mark(at, None, unit, layer, communication) for at, unit, layer, _, communication in entries]
    return log, [when for _, _, _, when, _ in entries]


def with_asides(behind: dict[int, float]) -> list[Entry]:
    """The same iteration with something aside, so long, behind each of these marks; the second half of it nested."""
    entries: list[Entry] = []
    late_us = 0.0
    for number, (at, unit, layer, when, communication) in enumerate(PLAIN):
        entries.append((at, unit, layer, when + late_us, communication))
        if number in behind:
            length_us, begin_us = behind[number], when + late_us + 0.25
            for what, after_us in ((At.ASIDE, 0.0), (At.ASIDE, 0.5), (At.ASIDE_END, 0.75), (At.ASIDE_END, 1.0)):
                entries.append((what, "", -1, begin_us + after_us * length_us, None))
            late_us += length_us
    return entries


def sorted_samples(entries: list[Entry] | tuple[Entry, ...]) -> Samples:
    samples = Samples(chunks=1)
    samples.add(*without_asides(*marks_of(entries)), READS)
    return samples


def test_an_iteration_with_replays_is_sorted_like_one_without() -> None:
    draw = random.Random(7)
    places = [number for number, entry in enumerate(PLAIN[:-1]) if entry[0] not in (At.LAUNCH, At.WAIT)]
    plain = sorted_samples(PLAIN)
    assert plain.times[0].passes_us == 58.0 + 57.0
    for _ in range(50):
        behind = {number: draw.choice((0.5, 4.0, 32.0, 1024.0)) for number in draw.sample(places, 8)}
        assert sorted_samples(with_asides(behind)) == plain, behind


@pytest.mark.parametrize("is_over", [False, True])
def test_a_replay_beside_a_communication_has_shortened_its_wait(is_over: bool) -> None:
    """Launched at 81, in flight for 29: with 16 aside, 9 of compute leave a wait of 4."""
    wait_us = 0.0 if is_over else 4.0
    what = BACKWARD._replace(was_over=is_over)
    log = marks_of(
        (
            (At.GRAD_UNIT, "linear_fc1", 0, 79.0, None), (At.LAUNCH, "", -1, 81.0, BACKWARD),
            (At.ASIDE, "", -1, 82.0, None), (At.ASIDE_END, "", -1, 98.0, None),
            (At.WAIT, "", -1, 106.0, BACKWARD), (At.WAIT_END, "", -1, 106.0 + wait_us, what),
            (At.BACKWARD_END, "", 0, 108.0 + wait_us, None),
        )
    )  # fmt: skip
    _, times_us = without_asides(*log)
    end_us = 90.0 if is_over else 110.0
    assert times_us == [79.0, 81.0, 90.0, end_us, end_us + 2.0]


def test_marks_of_a_replay_take_no_time() -> None:
    log = marks_of(
        (
            (At.GRAD_UNIT, "activation", 0, 1.0, None), (At.ASIDE, "", -1, 2.0, None),
            (At.GRAD_UNIT, "linear_fc1", 0, 5.0, None), (At.ASIDE_END, "", -1, 10.0, None),
            (At.BACKWARD_END, "", 0, 11.0, None),
        )
    )  # fmt: skip
    assert without_asides(*log)[1] == [1.0, 2.0, 3.0]


def test_the_ends_of_other_things_are_no_ends_of_a_wait() -> None:
    """Members of an enumeration with the same text would be one member."""
    (steps,) = sorted_samples(PLAIN).forward[0]
    assert [(step.name, step.us) for step in steps] == [
        ("linear_fc1", 11.0), ("activation", 4.0), ("linear_fc2", 10.0), ("all_reduce", 20.0),
        ("bias_dropout_add", 2.0),
    ]  # fmt: skip
