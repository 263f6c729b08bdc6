"""From words to values: types, spellings, refusals and errors."""

import pathlib

import pytest

from megatron.pretrain.config import parse_command_line, validate
from megatron.pretrain.config.help_text import EPILOG
from overlap_recompute.plan.errors import ConfigError
from tests.unit.config.conftest import MINIMAL, Parse, environment


def test_every_kind_of_value(parse: Parse) -> None:
    config = parse(
        "--bf16 --no-rope-fusion --min-lr=1e-5 --lr-decay-style cosine --split 90,10,0 --timing-log-level 2 "
        "--recompute-granularity selective --recompute-modules mlp layernorm --attention-dropout 0"
    )
    assert config.precision.bf16 is True
    assert config.model.rope_fusion is False
    assert config.model.attention_dropout == 0.0
    assert config.optimizer.min_lr == 1e-5
    assert config.optimizer.lr_decay_style == "cosine"
    assert config.logging.timing_log_level == 2
    assert config.recompute.recompute_modules == ("mlp", "layernorm")
    assert config.data.split == "90,10,0"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--train-iterss 5", "did you mean --train-iters?"),
        ("--num_layers 4", "did you mean --num-layers?"),
        ("--tensor-model-parallel 2", "did you mean --tensor-model-parallel-size?"),
        ("--moe-router-topkk 2", "did you mean --moe-router-topk?"),
        ("--xyzzy-quux", "found the unknown flag --xyzzy-quux; expected a flag of this program; see --help"),
        ("--num-layers four", "found --num-layers 'four'; expected a whole number, at least 1"),
        ("--num-layers 0", "found --num-layers '0'; expected a whole number, at least 1"),
        ("--num-layers 4.0", "found --num-layers '4.0'; expected a whole number"),
        ("--num-layers", "found --num-layers without a value"),
        ("--num-layers 4 5", "found --num-layers 4 5; expected one value"),
        ("--lr nan", "found --lr 'nan'; expected a number, more than 0"),
        ("--lr inf", "found --lr 'inf'"),
        ("--lr -1", "found --lr '-1'"),
        ("--weight-decay -0.1", "expected a number, at least 0"),
        ("--hidden-dropout 1", "expected a number, at least 0 and less than 1"),
        ("--adam-beta2 1.5", "found --adam-beta2 '1.5'"),
        ("--lr-decay-style Cosine", "expected one of constant, linear, cosine, inverse-square-root, WSD"),
        ("--timing-log-level 3", "expected one of 0, 1, 2"),
        ("--recompute-modules", "expected at least one value after --recompute-modules"),
        ("--recompute-modules attn", "expected one of core_attn"),
        ("--bf16 true", "found --bf16 true; expected --bf16 without a value"),
        ("--use-flash-attn yes", "expected --use-flash-attn without a value"),
        ("--use-mcore-models yes", "write --use-mcore-models or remove it"),
        ("--dist-ckpt-format zarr", "expected --dist-ckpt-format torch_dist"),
        ("--save=", "found --save ''; expected text that is not empty"),
        ("--fp8-format hybrid", "--fp8-format, a flag of Megatron-LM that is refused because 8-bit and 4-bit formats"),
        ("--rampup-batch-size 16 16 1000", "the number of microbatches must stay the same"),
        ("--rl-some-future-flag", "reinforcement learning"),
        ("--tokenizer-type TikTokenizer", "use HuggingFaceTokenizer with a tokenizer.json"),
        ("--ckpt-format torch", "refused because only torch_dist"),
        ("--recompute-modules core_attn mla_up_proj", "refused because multi-latent attention"),
    ],
)
def test_a_wrong_word_is_one_clear_error(parse: Parse, flags: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(flags)
    assert expected in str(error.value)
    assert str(error.value).startswith("found ")


def test_a_word_before_any_flag() -> None:
    with pytest.raises(ConfigError, match="the word 'train' before any flag"):
        parse_command_line(["train", *MINIMAL.split()], {})


def test_all_missing_flags_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse_command_line(["--num-layers", "4"], {})
    for flag in ("--hidden-size", "--num-attention-heads", "--seq-length", "--micro-batch-size", "--lr"):
        assert f"no {flag}" in str(error.value)
    assert "no --num-layers" not in str(error.value)


def test_of_a_flag_given_twice_the_last_one_counts_and_is_noted(parse: Parse) -> None:
    config = parse("--seed 1 --seed 2")
    assert config.training.seed == 2
    assert "--seed is given more than once; the last one counts" in config.notes
    assert not any("more than once" in note for note in parse("--seed 2 --seed 2").notes)


@pytest.mark.parametrize(
    ("spelling", "group", "field", "value"),
    [
        ("--use-flash-attn", "model", "attention_backend", "flash"),
        ("--recompute-activations", "recompute", "recompute_granularity", "selective"),
        ("--use-rotary-position-embeddings", "model", "position_embedding_type", "rope"),
        ("--disable-manual-gc-eval", "training", "manual_gc_eval", False),
        ("--override-opt_param-scheduler", "optimizer", "override_opt_param_scheduler", True),
    ],
)
def test_other_spellings(parse: Parse, spelling: str, group: str, field: str, value: object) -> None:
    assert getattr(getattr(parse(spelling), group), field) == value


@pytest.mark.parametrize("flags", ["--use-mcore-models", "--no-persist-layer-norm", "--dist-ckpt-format torch_dist"])
def test_what_always_holds_is_accepted_and_noted(parse: Parse, flags: str) -> None:
    plain, config = parse(), parse(flags)
    assert config.to_dict() == plain.to_dict()
    (note,) = set(config.notes) - set(plain.notes)
    assert note.startswith(f"{flags.split()[0]} has no effect of its own: ")


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_names_every_group_and_ends_the_program(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        parse_command_line(["--no-such-flag", word], {})
    assert ending.value.code == 0
    text = capsys.readouterr().out
    for part in ("Model: ", "Mixture of experts: ", "Checkpoints: ", "--lr-warmup-fraction X", "[0.01]", "[required]"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 100
    assert "torchrun --nproc-per-node 8 pretrain_gpt.py" in text


def test_the_examples_of_the_help_are_right(tmp_path: pathlib.Path) -> None:
    lines = EPILOG.replace("\\\n", " ").replace("tokenizer.json", str(tmp_path)).splitlines()
    small, large = (line.split("pretrain_gpt.py")[1].split() for line in lines if "pretrain_gpt.py" in line)
    config = parse_command_line(small, {})
    validate(config)
    assert (config.train_iters, config.num_microbatches) == (20, 4)
    config = parse_command_line(large, environment(8))
    validate(config)
    assert (config.data_parallel_size, config.num_microbatches) == (1, 256)
