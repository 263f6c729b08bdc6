"""tools/gpu_stage_bench.py at toy size on the CPU: arms that agree, windows that hide, a record with its label."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator

import pytest
import torch

from megatron.pretrain.platform import install_platform

DEVICE = install_platform("gloo")  # before the first import of megatron.core, which the next lines cause

from megatron.overlap.measuring.clocks import HostClock  # noqa: E402
from overlap_recompute.plan.codec import read_record, write_record  # noqa: E402
from overlap_recompute.plan.errors import UserError  # noqa: E402
from overlap_recompute.plan.profile import COMPUTE, PROFILE_VERSION, Profile  # noqa: E402
from overlap_recompute.plan.validation import check_profile  # noqa: E402
from tools.stage_bench_lib.arms import ARMS, NONE, ON_DEMAND, OVERLAPPED, STOCK_FULL, arm_of  # noqa: E402
from tools.stage_bench_lib.bench import Bench, run_bench  # noqa: E402
from tools.stage_bench_lib.collectives import EmulatedCollectives  # noqa: E402
from tools.stage_bench_lib.link import HostLink, Rate, rate_of  # noqa: E402
from tools.stage_bench_lib.options import Options, parse  # noqa: E402
from tools.stage_bench_lib.page import page  # noqa: E402
from tools.stage_bench_lib.record import SCHEMA, label_of, record_of  # noqa: E402
from tools.stage_bench_lib.room import most_layers, needed, shortage, without_optimizer_bytes  # noqa: E402
from tools.stage_bench_lib.stage import Stage, build_stage, config_of  # noqa: E402

TOY = (
    "--device cpu --dtype fp32 --hidden-size 64 --sequence 32 --num-layers 4 --tensor-parallel 2 --vocabulary 128 "
    "--iterations 1 --rounds 1"
)
INSTANT = Rate(alpha_us=0.0, gbyte_per_s=1e9)


def options_of(text: str = "", preset: str = "gpt-23b") -> Options:
    return parse(f"--preset {preset} {TOY} {text}".split())


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bench() -> Bench:
    """The first of two stages, over a link so slow that everything can hide in it."""
    options = options_of("--pipeline-parallel 2 --alpha-us 2000")
    return run_bench(options, DEVICE, ("tools/gpu_stage_bench.py",), label_of(options, rate_of(options)))


def gradients_of(stage: Stage, arm: str) -> dict[str, torch.Tensor]:
    """Of the second step: in the first one nothing is brought back ahead."""
    collectives = EmulatedCollectives(HostLink(Rate(alpha_us=1000.0, gbyte_per_s=1.0)))
    with collectives, arm_of(arm, stage) as (forward_step, around, _):
        for _ in range(2):
            with around():
                collectives.active = True
                stage.step(forward_step, HostClock())
    return stage.gradients()


@pytest.mark.parametrize(
    ("preset", "stages", "stage", "further"),
    [("gpt-23b", 1, 0, ""), ("gpt-23b", 2, 0, "-- --sequence-parallel"), ("llama2-7b", 2, 1, "")],
)
def test_all_arms_have_the_same_gradients(preset: str, stages: int, stage: int, further: str) -> None:
    options = options_of(f"--pipeline-parallel {stages} --stage {stage} {further}", preset)
    config = config_of(options, layers=2 * stages, stages=stages, stage=stage)
    with build_stage(config, DEVICE, stage) as built:
        expected = gradients_of(built, NONE)
        assert all(bool(gradient.isfinite().all()) for gradient in expected.values())
        assert any(bool(gradient.abs().max() > 0) for gradient in expected.values())
        digest = built.gradient_digest()
        for arm in (STOCK_FULL, ON_DEMAND, OVERLAPPED):
            found = gradients_of(built, arm)
            assert all(torch.equal(found[name], expected[name]) for name in expected), arm
            assert built.gradient_digest() == digest
    assert not torch.distributed.is_initialized()


def test_the_stage_has_the_shapes_of_its_rank() -> None:
    options = options_of("--pipeline-parallel 2 --stage 1")
    with build_stage(config_of(options, layers=4, stages=2, stage=1), DEVICE, 1) as stage:
        shapes = {name.split("module.")[-1]: tuple(p.shape) for name, p in stage.model.named_parameters()}
        assert shapes["decoder.layers.0.self_attention.linear_qkv.weight"] == (3 * 64 // 2, 64)
        assert shapes["decoder.layers.0.mlp.linear_fc1.weight"] == (4 * 64 // 2, 64)
        assert shapes["output_layer.weight"] == (256 // 2, 64)  # padded
        assert not any("embedding" in name for name in shapes)
        assert [action.kind.value for action in stage.row(3)] == ["F", "B"] * 3
        assert stage.in_flight == 1


def test_a_digest_tells_gradients_apart() -> None:
    options = options_of()
    with build_stage(config_of(options, layers=1, stages=1, stage=0), DEVICE, 0) as stage:
        stage.step(stage.forward_step, HostClock())
        before = stage.gradient_digest()
        next(iter(stage.model.parameters())).main_grad.view(-1)[0] += 1.0
        assert stage.gradient_digest() != before


def test_collectives_take_the_time_of_the_link_and_are_put_back() -> None:
    methods = {name: vars(torch.distributed.ProcessGroup)[name] for name in ("allreduce", "_allgather_base")}
    options = options_of()
    with build_stage(config_of(options, layers=2, stages=1, stage=0), DEVICE, 0) as stage:
        with EmulatedCollectives(HostLink(INSTANT)) as collectives:
            stage.step(stage.forward_step, HostClock(), microbatches=1)
            assert collectives.take() == []  # not active
            collectives.active = True
            stage.step(stage.forward_step, HostClock(), microbatches=1)
        sent = collectives.take()
    # 4 of each layer, embedding, and those of head and loss; a ring of two moves the tensor once each way.
    layer_bytes = 32 * 64 * 4
    assert sent.count(layer_bytes) >= 9
    assert all(vars(torch.distributed.ProcessGroup)[name] is method for name, method in methods.items())


def test_overlap_hides_recompute_in_long_windows(bench: Bench) -> None:
    hidden = record_of(bench, DEVICE, "x")["arms"][OVERLAPPED]
    assert hidden["hidden_replays"] > 0
    on_demand = record_of(bench, DEVICE, "x")["arms"][ON_DEMAND]
    assert on_demand["hidden_replays"] == 0
    assert hidden["exposed_replays"] < on_demand["exposed_replays"]


def test_recompute_keeps_less(bench: Bench) -> None:
    peaks = {name: samples.peak_bytes - samples.before_bytes for name, samples in bench.arms.items()}
    assert peaks[ON_DEMAND] < peaks[NONE] and peaks[STOCK_FULL] < peaks[NONE]
    weights = {samples.before_bytes for samples in bench.arms.values()}
    assert len(weights) == 1 and weights.pop() > 0


def test_alone_tells_what_was_stated(bench: Bench) -> None:
    alone = bench.alone
    assert alone is not None
    assert alone.transfers == 9  # 8 of two layers, one of the embedding
    assert alone.stated_us == pytest.approx(9 * 2_000, rel=0.01)
    assert alone.communication_us >= 0.999 * alone.stated_us
    assert alone.recompute_us > 0 and alone.train_us > 0


def test_the_profile_is_one_of_the_whole_model(bench: Bench, tmp_path: pathlib.Path) -> None:
    profile = bench.profile
    assert profile is not None
    check_profile(profile, "the profile")
    assert profile.layout.split == ((2,), (2,)) and len(profile.layers) == 4
    assert "not a multi-GPU measurement" in profile.origin.note
    windows = [step for step in profile.kinds[0].forward if step.kind != COMPUTE]
    assert len(windows) == 2 and all(step.duration_us > 1_500 for step in windows)
    assert profile.head.forward and profile.embedding.forward
    link = profile.link("all_reduce")
    assert link is not None and link.alpha_us == 2_000
    write_record(tmp_path / "profile.json", profile)
    assert read_record(tmp_path / "profile.json", Profile, PROFILE_VERSION) == profile


def test_the_pipeline_is_composed_of_all_arms(bench: Bench) -> None:
    assert tuple(bench.composed) == ARMS
    results = {arm: found.result for arm, found in bench.composed.items()}
    assert all(len(result.stages) == 2 for result in results.values())
    assert results[NONE].iteration_us < results[ON_DEMAND].iteration_us
    assert results[OVERLAPPED].iteration_us < results[ON_DEMAND].iteration_us
    assert sum(stage.hidden_us for stage in results[OVERLAPPED].stages) > 0
    assert results[STOCK_FULL].iteration_us > results[NONE].iteration_us


def test_every_part_of_the_record_is_labelled(bench: Bench) -> None:
    record = json.loads(json.dumps(record_of(bench, DEVICE, "tools/gpu_stage_bench.py --preset gpt-23b")))
    label = record["label"]
    assert label == (
        "one CPU process, no GPU, one stage at TP-shard shapes, communication emulated with alpha=2000 us, "
        "beta=1/(100 GB/s), pipeline composed by simulation; not a multi-GPU measurement"
    )
    parts = [record["stage"], record["hidden"], record["alone"], *record["arms"].values(), *record["composed"].values()]
    assert all(part["label"] == label for part in parts)
    assert record["schema"] == SCHEMA and record["gradients_equal"] is True
    assert set(record["taken"]) == {"commit", "date", "device", "CUDA_DEVICE_MAX_CONNECTIONS", "software", "command"}
    assert list(record["arms"]) == list(ARMS) == list(record["composed"])
    assert record["energy"]["label"] == label and record["energy"]["measured"] is False
    text = page(record)
    assert "Energy was not measured: no GPU" in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    assert text.count(label) == 4 and text.count(record["taken"]["commit"]) == 4


def test_an_arm_that_does_not_fit_is_left_out_and_says_what_is_short(bench: Bench) -> None:
    starved = dataclasses.replace(bench, arms={ON_DEMAND: bench.arms[ON_DEMAND]}, refused={NONE: "2 GiB short"})
    record = record_of(starved, DEVICE, "x")
    assert record["do_not_fit"] == {NONE: "2 GiB short"} and record["hidden"]["fraction"] is None
    assert "does not fit: 2 GiB short" in page(record)


def test_a_stage_that_does_not_fit_says_by_how_much() -> None:
    options = options_of("--hidden-size 512 --sequence 256 --memory-gib 0.01")
    with pytest.raises(UserError) as fault:
        run_bench(options, DEVICE, ("x",), "x")
    assert "GiB short" in fault.value.found and "weights" in fault.value.found
    assert "--micro-batch" in fault.value.next_step


def test_room_is_asked_for_each_arm(bench: Bench) -> None:
    profile = bench.profile
    assert profile is not None
    sizes = {arm: without_optimizer_bytes(needed(profile, arm, 0, layers=2, in_flight=2)) for arm in (NONE, ON_DEMAND)}
    assert sizes[ON_DEMAND] < sizes[NONE]
    table = needed(profile, NONE, 0, layers=2, in_flight=2)
    assert shortage(table, sizes[NONE]) == ""
    assert shortage(table, sizes[NONE] - 1).endswith("short")
    measured = bench.arms[NONE].peak_bytes
    assert sizes[NONE] == pytest.approx(measured, rel=0.1)
    assert most_layers(lambda count: count <= 3, 5) == 3
    assert most_layers(lambda count: False, 5) == 0
