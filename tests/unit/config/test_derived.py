"""What follows from the given values, and the configuration as plain data."""

import dataclasses
import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.pretrain.config import PretrainConfig, parse_command_line, validate
from megatron.pretrain.config.flags import Flag, all_flags
from megatron.pretrain.config.pretrain_config import GROUPS
from megatron.pretrain.config.resolve import resolve
from overlap_recompute.plan.errors import ConfigError
from tests.unit.config.conftest import MINIMAL, Parse, environment

PP = "--pipeline-model-parallel-size"


def test_sizes(parse: Parse) -> None:
    config = parse(f"--tensor-model-parallel-size 2 {PP} 2 --global-batch-size 16", world_size=8)
    assert config.model_parallel_size == 4
    assert config.data_parallel_size == 2
    assert config.num_microbatches == 4
    assert config.virtual_pipeline_size is None
    assert parse(world_size=4).global_batch_size == 8


@pytest.mark.parametrize(
    ("flags", "world_size", "implementation", "is_noted"),
    [
        ("", 1, "stock", False),
        ("--overlap-recompute", 1, "stock", False),
        (f"{PP} 2", 2, "stock", False),
        (f"{PP} 2 --overlap-recompute", 2, "overlap", True),
        (f"{PP} 2 --overlap-recompute --schedule-impl stock", 2, "stock", False),
        (f"{PP} 2 --schedule-impl overlap", 2, "overlap", False),
    ],
)
def test_overlapped_recompute_brings_its_schedule(
    parse: Parse, flags: str, world_size: int, implementation: str, is_noted: bool
) -> None:
    config = parse(flags, world_size=world_size)
    assert config.parallel.schedule_impl == implementation
    assert any("--schedule-impl is overlap" in note for note in config.notes) is is_noted


@pytest.mark.parametrize(
    ("flags", "times"),
    [
        (f"{PP} 2 --schedule-impl stock", 1),
        (f"{PP} 2", 0),
    ],
)
def test_a_run_that_plans_for_itself_says_that_stock_schedules_fill_no_wait(
    parse: Parse, flags: str, times: int
) -> None:
    auto = "--overlap-recompute --overlap-recompute-auto --overlap-recompute-memory-gib 4"
    config = resolve(parse(f"{flags} {auto}", world_size=2))
    assert sum("--schedule-impl stock fills no wait" in note for note in config.notes) == times


def test_samples_become_iterations(parse: Parse) -> None:
    config = parse("--train-samples 21", without="--train-iters 10")
    assert config.train_iters == config.training.train_iters == 10
    validate(config)


@pytest.mark.parametrize(
    ("flags", "ffn", "channels", "groups"),
    [
        ("", 256, 16, 4),
        ("--swiglu", 128, 16, 4),
        ("--swiglu --hidden-size 4096 --num-attention-heads 32", 10880, 128, 32),
        ("--swiglu --hidden-size 16", 64, 4, 4),
        ("--ffn-hidden-size 100 --kv-channels 8", 100, 8, 4),
        ("--group-query-attention", 256, 16, 1),
        ("--group-query-attention --num-query-groups 2", 256, 16, 2),
    ],
)
def test_shape_defaults(parse: Parse, flags: str, ffn: int, channels: int, groups: int) -> None:
    config = parse(flags)
    assert (config.ffn_hidden_size, config.kv_channels, config.num_query_groups) == (ffn, channels, groups)
    assert (config.model.ffn_hidden_size, config.model.kv_channels) == (ffn, channels)
    assert config.max_position_embeddings == config.model.max_position_embeddings == 64


@pytest.mark.parametrize(
    ("flags", "world_size", "batched"),
    [
        ("", 1, True),
        (f"{PP} 2", 2, True),
        (f"{PP} 2 --num-virtual-stages-per-pipeline-rank 2", 2, False),
        (f"{PP} 2 --num-virtual-stages-per-pipeline-rank 2 --no-overlap-p2p-communication", 2, False),
        (f"{PP} 4 --num-layers 8 --num-virtual-stages-per-pipeline-rank 2", 4, False),
        (f"{PP} 4 --num-layers 8 --num-virtual-stages-per-pipeline-rank 2 --no-overlap-p2p-communication", 4, True),
        (f"{PP} 2 --pipeline-model-parallel-layout Et|t|t|tL --no-overlap-p2p-communication", 2, False),
    ],
)
def test_pipeline_transfers(parse: Parse, flags: str, world_size: int, batched: bool) -> None:
    assert parse(flags, world_size=world_size).use_batch_p2p is batched


@pytest.mark.parametrize(
    ("flags", "fused"),
    [
        ("", True),
        ("--disable-bias-linear", False),
        ("--swiglu --disable-bias-linear", True),
        ("--swiglu --no-bias-swiglu-fusion", False),
        ("--no-bias-gelu-fusion", False),
        ("--squared-relu", False),
    ],
)
def test_bias_activation_fusion(parse: Parse, flags: str, fused: bool) -> None:
    assert parse(flags).bias_activation_fusion is fused


@pytest.mark.parametrize(("flags", "name"), [("", "float32"), ("--bf16", "bfloat16"), ("--fp16", "float16")])
def test_params_dtype_name(parse: Parse, flags: str, name: str) -> None:
    assert parse(flags).params_dtype_name == name


@pytest.mark.parametrize(
    ("flags", "group", "field", "value", "note"),
    [
        ("--sequence-parallel", "parallel", "sequence_parallel", False, "--sequence-parallel is off"),
        ("--bf16", "precision", "accumulate_allreduce_grads_in_fp32", True, "in fp32, as always with --bf16"),
        ("--bf16 --grad-reduce-in-bf16", "precision", "accumulate_allreduce_grads_in_fp32", False, None),
        ("--fp16", "training", "check_for_nan_in_loss_and_grad", False, "the check for NaN is off"),
        ("--fp16 --loss-scale 8", "training", "check_for_nan_in_loss_and_grad", True, None),
        ("", "model", "masked_softmax_fusion", False, "masked softmax fusion is off: on a CPU"),
        ("--no-masked-softmax-fusion", "model", "masked_softmax_fusion", False, None),
        ("", "model", "gradient_accumulation_fusion", False, "gradient accumulation fusion is off"),
        (
            "--distributed-backend nccl",
            "model",
            "gradient_accumulation_fusion",
            False,
            "fused_weight_gradient_mlp_cuda",
        ),
        ("--position-embedding-type rope", "model", "rope_fusion", False, "rope fusion is off"),
        ("", "model", "rope_fusion", False, None),
        ("", "model", "use_cpu_initialization", True, None),
        ("--distributed-backend nccl", "model", "use_cpu_initialization", False, None),
        ("--distributed-backend nccl", "model", "transformer_impl", "local", "Transformer Engine is not installed"),
        ("--transformer-impl local --distributed-backend nccl", "model", "transformer_impl", "local", None),
        ("--recompute-granularity selective", "recompute", "recompute_modules", ("core_attn",), None),
        ("", "training", "global_batch_size", 2, "--global-batch-size is 2"),
        ("--skip-train --load x", "checkpoint", "no_load_optim", True, "--skip-train needs none"),
        ("", "data", "split", "969,30,1", None),
        ("", "data", "tokenizer_type", "NullTokenizer", None),
        ("--num-experts 4", "moe", "moe_ffn_hidden_size", 256, None),
        ("", "moe", "moe_ffn_hidden_size", None, None),
    ],
)
def test_settled_values(parse: Parse, flags: str, group: str, field: str, value: object, note: str | None) -> None:
    config = parse(flags)
    assert getattr(getattr(config, group), field) == value
    subjects = {"checkpoint": "--skip-train", "model": field.replace("_", " "), "precision": "fp32", "training": "NaN"}
    if note:
        assert sum(note in text for text in config.notes) == 1
    elif group in subjects:
        assert not any(subjects[group] in text for text in config.notes)


def test_transformer_engine_is_taken_where_it_is_installed(parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron.pretrain.config.resolve.has_module", lambda name: name == "transformer_engine")
    monkeypatch.setattr("megatron.pretrain.config.checks.machine.has_module", lambda name: True)
    config = parse("--distributed-backend nccl --position-embedding-type rope")
    assert config.model.transformer_impl == "transformer_engine"
    assert config.model.rope_fusion
    assert config.model.gradient_accumulation_fusion
    assert not config.model.masked_softmax_fusion
    validate(config)
    assert parse("").model.transformer_impl == "local", "on a CPU never"
    with pytest.raises(ConfigError, match="--attention-backend local"):
        validate(parse("--distributed-backend nccl --attention-backend local"))


def test_expert_tensor_parallel_default(parse: Parse) -> None:
    flags = "--num-experts 4 --tensor-model-parallel-size 2 --sequence-parallel"
    on_cpu, on_gpu = parse(flags, world_size=2), parse(f"{flags} --distributed-backend nccl", world_size=2)
    assert on_cpu.parallel.expert_tensor_parallel_size == 1
    assert any("--expert-tensor-parallel-size is 1" in note for note in on_cpu.notes)
    assert on_gpu.parallel.expert_tensor_parallel_size == 2


def test_a_blend_from_a_file(parse: Parse, tmp_path: pathlib.Path) -> None:
    blend = tmp_path / "blend.txt"
    blend.write_text("# two parts\n0.7 data/web\n0.3 'data/my code'\n")
    config = parse(f"--data-args-path {blend}", without="--mock-data")
    assert config.data.data_path == ("0.7", "data/web", "0.3", "data/my code")
    with pytest.raises(ConfigError, match="--data-args-path"):
        parse(f"--data-args-path {tmp_path}/none")
    blend.write_text("'unclosed")
    with pytest.raises(ConfigError, match="No closing quotation"):
        parse(f"--data-args-path {blend}")


def test_resolving_twice_changes_nothing(parse: Parse) -> None:
    config = parse("--bf16 --sequence-parallel --num-experts 4 --recompute-activations")
    assert resolve(config) == config


def test_identity_is_the_shape_alone(parse: Parse) -> None:
    base = parse().identity()
    json.dumps(base)
    same = (
        "--bf16",
        "--hidden-dropout 0",
        f"{PP} 2",
        "--lr 1",
        "--attention-backend unfused",
        "--seed 7",
        "--max-position-embeddings 64",
    )
    for flags in same:
        assert parse(flags, world_size=2).identity() == base, flags
    other = (
        "--num-layers 5", "--hidden-size 128", "--num-attention-heads 2", "--ffn-hidden-size 64", "--kv-channels 8",
        "--swiglu", "--squared-relu", "--normalization RMSNorm", "--position-embedding-type rope", "--qk-layernorm",
        "--disable-bias-linear", "--untie-embeddings-and-output-weights", "--max-position-embeddings 128",
        "--group-query-attention", "--num-experts 4",
    )  # fmt: skip
    identities = [parse(flags).identity() for flags in other]
    assert all(identity != base for identity in identities)
    assert len({json.dumps(identity, sort_keys=True) for identity in identities}) == len(other)
    rope = "--position-embedding-type rope"
    assert parse(f"{rope} --seq-length 128").identity() == parse(rope).identity()
    assert parse(f"{rope} --rotary-base 5000").identity() != parse(rope).identity()


def test_plain_data(parse: Parse) -> None:
    config = parse("--recompute-granularity selective --recompute-modules mlp layernorm")
    data = config.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert list(data) == [name for name, _ in GROUPS]
    assert data["recompute"]["recompute_modules"] == ["mlp", "layernorm"]
    assert not {"world", "notes"} & set(data), "what differs between ranks is no part of it"


def words(flag: Flag) -> st.SearchStrategy[list[str]]:
    """Legal words for a flag, the flag included."""
    if flag.is_switch:
        return st.just([flag.name])
    choices = flag.choices or {int: (1, 2, 64), float: (0.5, 0.25), str: ("text", "a b", "1")}[flag.base]
    one = st.sampled_from(choices).map(str)
    many = st.lists(one, min_size=1, max_size=3) if flag.is_tuple else st.tuples(one)
    return many.map(lambda values: [flag.name, *values])


ANY_FLAG = st.one_of([
    words(flag)
    for _, options in GROUPS
    for flag in all_flags(options)
    if flag.field_name not in (
        "model_preset", "data_args_path", "pipeline_model_parallel_layout", "moe_layer_freq", "overlap_recompute_plan",
        "overlap_recompute_auto_plan",
    )
])  # fmt: skip


@given(st.lists(ANY_FLAG, max_size=12))
def test_the_command_line_survives_a_round_trip(flags: list[list[str]]) -> None:
    more = [word for flag in flags for word in flag]
    config = parse_command_line([*MINIMAL.split(), *more], environment(4))
    again = parse_command_line(config.to_argv(), environment(4))
    assert dataclasses.replace(again, notes=config.notes) == config


def test_a_config_made_in_code_has_the_same_derived_values(parse: Parse) -> None:
    config = parse()
    bare = PretrainConfig(
        **{name: getattr(config, name) for name, _ in GROUPS if name != "model"},
        model=dataclasses.replace(config.model, ffn_hidden_size=None, kv_channels=None, max_position_embeddings=None),
        world=config.world,
    )
    assert bare.identity() == config.identity()
