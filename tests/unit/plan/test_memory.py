"""The memory expression, by tables that were added up by hand."""

from dataclasses import replace

import pytest

from overlap_recompute.plan.memory import (
    layer_kept_bytes,
    layer_working_set_bytes,
    stage_memory,
    static_bytes,
    static_bytes_of_stage,
)
from overlap_recompute.plan.profile import StaticRules
from tests.unit.plan.samples import KIND, sample_profile

HALF = StaticRules(
    parameter_bytes=2, gradient_bytes=4, main_parameter_bytes=4, state_bytes=8, shards=4, expert_shards=2
)


@pytest.mark.parametrize(
    ("dropped", "kept", "working"),
    [
        (set(), 600, 500),  # input, norm out, act out
        ({"act"}, 600, 500 + 400),  # fc out is kept for the replay of act
        ({"act", "fc"}, 200, 500 + 800),  # fc out comes back, is read by act, and goes
        ({"act", "fc", "norm"}, 100, 500 + 900),
        ({"norm"}, 500, 500 + 100),
    ],
)
def test_a_layer(dropped: set[str], kept: int, working: int) -> None:
    assert layer_kept_bytes(KIND, dropped) == kept
    assert layer_working_set_bytes(KIND, dropped) == working


def test_what_backward_has_read_makes_room() -> None:
    """The first step is done with act, whose output was kept, before the second brings norm back."""
    first, second, _ = KIND.backward
    kind = replace(KIND, backward=(first, replace(second, needs=("norm",))), transient_bytes=0)
    assert layer_working_set_bytes(kind, {"norm"}) == 0
    # fc reads norm, so all are back in the first step.
    assert layer_working_set_bytes(kind, {"norm", "fc", "act"}) == 900


def test_a_unit_that_no_step_needs_counts_all_the_time() -> None:
    assert layer_working_set_bytes(replace(KIND, backward=(), transient_bytes=0), {"act", "norm"}) == 500


def test_static_bytes_by_megatrons_rules() -> None:
    found = static_bytes(HALF, 1000, 100)
    assert (found.parameters_bytes, found.gradients_bytes, found.optimizer_bytes) == (2200, 4400, 12 * (250 + 50))
    assert found.total_bytes == 2200 + 4400 + 3600


def test_tied_embeddings_are_a_copy_on_another_stage() -> None:
    profile = replace(sample_profile(((4,),)), tied_embeddings=True, tied_parameters=1900)
    assert static_bytes_of_stage(profile, ((4,),), 0).parameters_bytes == 4 * (4 * 1000 + 2 * 2000 - 1900)
    stages = [static_bytes_of_stage(profile, ((1,), (3,)), stage).parameters_bytes for stage in (0, 1)]
    assert stages == [4 * (1000 + 2000), 4 * (3000 + 2000)]


def test_a_first_and_a_last_stage() -> None:
    profile = sample_profile()
    dropped = {layer: {"act", "fc"} for layer in range(4)}
    first = stage_memory(profile, ((2,), (2,)), 0, dropped, (2,), prefetch_cap_bytes=400, margin_fraction=0.1)
    assert first.kept_bytes == 2 * (200 + 2 * 200)  # embedding and two layers of two microbatches
    assert first.working_set_bytes == 1300 and first.head_bytes == 0
    assert first.communication_bytes == 3 * 100  # an output, a gradient, and the next one
    assert first.margin_bytes == (1200 + 400 + 1300) // 10
    last = stage_memory(profile, ((2,), (2,)), 1, dropped, (1,), margin_fraction=0)
    assert last.kept_bytes == 200 + 2 * 200
    # When the layers run backward, what the head kept is gone; the head itself needs less than they do.
    assert last.working_set_bytes == 1300 - 200 and last.head_bytes == 0
    assert last.communication_bytes == 2 * 100  # a gradient and the next input
    assert last.total_bytes == 4 * 4000 * (1 + 1 + 2) + 600 + 1100 + 200


def test_a_head_that_needs_more_than_a_layer() -> None:
    profile = sample_profile()
    wide = replace(profile, head=replace(profile.head, kept_bytes=5000, transient_bytes=9000))
    last = stage_memory(wide, ((2,), (2,)), 1, {}, (1,), margin_fraction=0)
    assert (last.kept_bytes, last.working_set_bytes, last.head_bytes) == (5000 + 2 * 600, 0, 9000)


def test_an_earlier_layer_has_the_room_of_those_behind_it() -> None:
    profile = sample_profile(((2,),))
    bare = replace(profile, head=replace(profile.head, kept_bytes=0, transient_bytes=0))
    found = stage_memory(bare, ((2,),), 0, {0: {"act", "fc", "norm"}}, (1,), margin_fraction=0)
    # Layer 1 keeps 600 and needs 500; when layer 0 brings 900 back, those 600 are gone.
    assert found.working_set_bytes == max(500, 900 + 500 - 600)


def test_one_matrix_for_both_ends_holds_its_gradient_through_all_layers() -> None:
    profile = replace(sample_profile(((2,),)), tied_embeddings=True, tied_parameters=1900)
    bare = replace(profile, head=replace(profile.head, kept_bytes=0))
    found = stage_memory(bare, ((2,),), 0, {}, (1,), margin_fraction=0)
    assert found.working_set_bytes == 4 * 1900 + 500
