"""Whole profiles of the analytic model: plausible, valid, and refused where sizes do not go together."""

from pathlib import Path

import pytest

from overlap_recompute.plan.codec import read_record, write_record
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.model_shape import parameter_count
from overlap_recompute.plan.presets import PRESETS, ModelPreset
from overlap_recompute.plan.profile import PROFILE_VERSION, Profile
from overlap_recompute.plan.validation import check_profile
from overlap_recompute.simulator.analytic_options import profile_from_options, spread_layers
from tests.unit.simulator.sites import mfu

NVLINK, PCIE = "a100-80gb-nvlink", "a100-80gb-pcie"


def held_parameters(profile: Profile, preset: ModelPreset) -> int:
    """Elements of the whole model, counted from what the ranks hold, each element once."""
    kind, ranks = profile.kinds[0], profile.layout.tensor_parallel
    layers, norm = len(profile.layers), preset.hidden * (1 if preset.llama_style else 2)
    experts = kind.expert_parameters * profile.layout.expert_parallel
    ends = profile.embedding.parameters + profile.head.parameters - profile.tied_parameters
    held = layers * (kind.parameters + experts) + ends
    # Norms, biases of row-parallel linears, routers and positions are on every rank.
    biases = 0 if preset.llama_style else 2 * preset.hidden
    positions = 0 if preset.llama_style else profile.layout.sequence * preset.hidden
    repeated = layers * (2 * norm + biases + preset.experts * preset.hidden) + norm + positions
    return ranks * held - (ranks - 1) * repeated


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_every_preset_gives_a_profile_that_can_be_stored(preset: ModelPreset, tmp_path: Path) -> None:
    profile = profile_from_options(
        model=preset.name, hardware="h100-sxm", tensor_parallel=8, pipeline_parallel=4, sequence_parallel=True,
        data_parallel=2, command="simulate",
    )  # fmt: skip
    check_profile(profile, "computed")
    write_record(tmp_path / "profile.json", profile)
    assert read_record(tmp_path / "profile.json", Profile, PROFILE_VERSION) == profile
    assert profile.origin.source == "analytic"
    assert (profile.tied_parameters > 0) == profile.tied_embeddings == (not preset.llama_style)
    assert held_parameters(profile, preset) == parameter_count(preset.shape(tensor_parallel=8))


@pytest.mark.parametrize("model", ["gpt-7b", "gpt-13b", "llama2-7b", "llama2-13b"])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_mfu_without_recompute_is_plausible(model: str, sequence_parallel: bool) -> None:
    """Published runs on A100 with NVLink lie between 35 and 60 %."""
    profile = profile_from_options(
        model=model, hardware=NVLINK, tensor_parallel=4, pipeline_parallel=2, sequence_parallel=sequence_parallel,
        micro_batch=1, microbatches=32,
    )  # fmt: skip
    assert 0.35 < mfu(profile) < 0.60


def test_a_thin_link_costs() -> None:
    def found(hardware: str, tensor_parallel: int) -> float:
        sizes = {"tensor_parallel": tensor_parallel, "pipeline_parallel": 2}
        return mfu(profile_from_options(model="llama2-13b", hardware=hardware, **sizes))  # type: ignore[arg-type]

    assert found(PCIE, 4) < 0.6 * found(NVLINK, 4)
    # A stage of eight tensor-parallel ranks is a node: their collectives never see the network.
    assert found(f"{NVLINK}/100gbit-node", 8) == found(NVLINK, 8)


def test_tensor_parallelism_through_nodes_is_slow() -> None:
    in_node = profile_from_options(model="gpt-20b", hardware=NVLINK, tensor_parallel=8)
    through = profile_from_options(model="gpt-20b", hardware=f"{NVLINK}/100gbit-node", tensor_parallel=16)
    fits = [profile.link("all_reduce") for profile in (in_node, through)]
    assert fits[0] is not None and fits[1] is not None
    assert fits[1].beta_us_per_byte > 10 * fits[0].beta_us_per_byte


def test_links_are_those_of_the_groups() -> None:
    def names(**sizes: int) -> set[str]:
        return {fit.name for fit in profile_from_options(model="mixtral-8x7b", hardware=NVLINK, **sizes).links}

    assert names() == set()
    assert names(pipeline_parallel=2) == {"send"}
    assert names(data_parallel=8, expert_parallel=8) == {"all_to_all"}
    one_node = profile_from_options(model="gpt-7b", hardware=NVLINK, tensor_parallel=4, pipeline_parallel=2)
    two_nodes = profile_from_options(model="gpt-7b", hardware=NVLINK, tensor_parallel=8, pipeline_parallel=2)
    near, far = one_node.link("send"), two_nodes.link("send")
    assert near is not None and far is not None
    assert far.beta_us_per_byte > 5 * near.beta_us_per_byte


def test_static_rules_follow_the_optimizer() -> None:
    sharded = profile_from_options(model="gpt-7b", hardware=NVLINK, data_parallel=4)
    whole = profile_from_options(model="gpt-7b", hardware=NVLINK, data_parallel=4, distributed_optimizer=False)
    assert (sharded.static.shards, whole.static.shards) == (4, 1)
    assert (sharded.static.parameter_bytes, sharded.static.gradient_bytes) == (2, 4)
    assert sharded.static.main_parameter_bytes + sharded.static.state_bytes == 12
    mixture = profile_from_options(model="mixtral-8x7b", hardware=NVLINK, data_parallel=16, expert_parallel=8)
    assert (mixture.static.shards, mixture.static.expert_shards) == (16, 2)


def test_the_update_is_what_nothing_hides() -> None:
    def update_us(**options: object) -> float:
        sizes = {"model": "gpt-7b", "hardware": NVLINK, "tensor_parallel": 2, "micro_batch": 2}
        return profile_from_options(**(sizes | options)).update_us  # type: ignore[arg-type]

    alone, sharded = update_us(), update_us(data_parallel=4)
    # 6.66e9 elements over 2 ranks: gradients zeroed (4 bytes) and 34 bytes of the optimizer, at 1733 GB/s.
    assert alone == pytest.approx(6.66e9 / 2 * 38 / 1.733e6, rel=0.03)
    assert sharded < 0.5 * alone
    reduced = 6.66e9 / 2 * 3 / 4 * (4 + 2) / 230e3
    assert update_us(data_parallel=4, overlap_reduction=False) - sharded == pytest.approx(reduced, rel=0.03)
    assert update_us(data_parallel=16, hardware=f"{NVLINK}/100gbit-node") > 5 * sharded


def test_the_fingerprint_is_of_the_model_not_the_hardware() -> None:
    first = profile_from_options(model="gpt-7b", hardware=NVLINK, tensor_parallel=4)
    assert profile_from_options(model="gpt-7b", hardware=PCIE, tensor_parallel=4).model_fingerprint == (
        first.model_fingerprint
    )
    assert profile_from_options(model="gpt-7b", hardware=NVLINK, tensor_parallel=2).model_fingerprint != (
        first.model_fingerprint
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model": "gpt-8b"}, "write gpt-"),
        ({"tensor_parallel": 0}, "found --tensor-parallel 0; expected at least 1"),
        ({"tensor_parallel": 3}, "with 32 heads; expected a divisor of 32"),
        ({"model": "llama3-8b", "tensor_parallel": 16}, "with 8 groups; expected a divisor of 8"),
        ({"sequence": 2047, "tensor_parallel": 4, "sequence_parallel": True}, "--sequence 2047 shared by 4 ranks"),
        ({"pipeline_parallel": 64}, "32 layers over 64 stages"),
        ({"split": ((16,), (15,)), "pipeline_parallel": 2}, "a split of 31 layers over 2 stages"),
        ({"attention": "fast"}, "--attention fast; expected flash or unfused"),
        ({"model": "llama3-8b", "attention": "unfused"}, "whose heads share keys and values"),
        ({"expert_parallel": 2, "data_parallel": 2}, "which has no experts"),
        ({"model": "mixtral-8x7b", "expert_parallel": 3, "data_parallel": 3}, "a divisor of both"),
        ({"model": "mixtral-8x7b", "tensor_parallel": 2}, "add --sequence-parallel"),
        ({"hardware": "a100"}, "write a100-"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(options: dict[str, object], expected: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=expected):
        profile_from_options(**({"model": "gpt-7b", "hardware": NVLINK} | options))  # type: ignore[arg-type]


def test_layers_that_are_left_over_go_to_the_middle() -> None:
    assert spread_layers(32, 4, 1) == ((8,),) * 4
    assert spread_layers(10, 4, 1) == ((2,), (3,), (3,), (2,))
    assert spread_layers(9, 2, 2) == ((2, 2), (3, 2))
    assert sum(map(sum, spread_layers(44, 8, 1))) == 44
