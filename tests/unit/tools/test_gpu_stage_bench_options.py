"""The command line of tools/gpu_stage_bench.py: what is built from it, and what it refuses."""

import pytest
import torch

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.presets import PRESETS
from tools.gpu_stage_bench import main
from tools.stage_bench_lib.link import HostLink, Rate, pipeline_rate_of
from tools.stage_bench_lib.options import parse


def words(text: str) -> list[str]:
    return f"--preset gpt-23b {text}".split()


@pytest.mark.parametrize("preset", [preset.name for preset in PRESETS])
def test_every_preset_keeps_its_shape(preset: str) -> None:
    options = parse(["--preset", preset, "--tensor-parallel", "8", "--pipeline-parallel", "4"])
    known = next(entry for entry in PRESETS if entry.name == preset)
    assert options.model == known
    assert options.stage_layers == known.layers // 4
    flags = options.trainer_flags(layers=known.layers, stages=4)
    assert flags[flags.index("--hidden-size") + 1] == str(known.hidden)
    assert flags[flags.index("--ffn-hidden-size") + 1] == str(known.ffn_hidden)
    assert flags[flags.index("--global-batch-size") + 1] == "16"


def test_groups_of_queries_follow_a_toy_width() -> None:
    options = parse("--preset llama3-8b --hidden-size 128 --tensor-parallel 2".split())
    flags = options.trainer_flags(layers=2, stages=1)
    assert flags[flags.index("--num-attention-heads") + 1] == flags[flags.index("--num-query-groups") + 1] == "2"


def test_toy_overrides_and_further_flags() -> None:
    options = parse(
        words("--hidden-size 128 --num-layers 4 --tensor-parallel 2 --vocabulary 512 -- --sequence-parallel")
    )
    model = options.model
    assert (model.hidden, model.ffn_hidden, model.heads, model.layers) == (128, 512, 2, 4)
    flags = options.trainer_flags(layers=4, stages=1)
    assert flags[-1] == "--sequence-parallel"
    assert flags[flags.index("--vocab-size") + 1] == "511"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("--pipeline-parallel 5", "--pipeline-parallel 5 for the 36 layers"),
        ("--pipeline-parallel 2 --stage 2", "--stage 2"),
        ("--pipeline-parallel 2 --layers 19", "--layers 19"),
        ("--tensor-parallel 5", "--tensor-parallel 5 for 56 heads"),
        ("--gbyte-per-s 0", "--gbyte-per-s 0"),
        ("--alpha-us -1", "--alpha-us -1"),
    ],
)
def test_contradictions_name_the_flag(text: str, found: str) -> None:
    with pytest.raises(ConfigError) as fault:
        parse(words(text))
    assert found in fault.value.found


def test_an_unknown_preset_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="write gpt-23b if that was meant"):
        parse(["--preset", "gpt23b"])


def test_what_is_no_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(words("--layers none"))
    assert "--layers" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(words("--layers 0"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_without_a_cuda_device_it_says_so_and_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("")) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("gpu_stage_bench.py: error: found --device cuda, but torch")
    assert "--device cpu" in written.err and written.err.count("\n") == 1


def test_faults_of_the_command_line_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", "gpt-24b"]) == 2
    assert "--preset 'gpt-24b'" in capsys.readouterr().err


def test_transfers_on_the_host_queue_and_end_in_time() -> None:
    now_s = [10.0]
    link = HostLink(Rate(alpha_us=100.0, gbyte_per_s=2.0), clock_s=lambda: now_s[0])
    first, second = link.start(1_000_000), link.start(0)  # 100 + 500 us, then 100 us
    now_s[0] += 599e-6
    assert not first.is_over()
    now_s[0] += 2e-6
    assert first.is_over() and not second.is_over()
    now_s[0] += 100e-6
    assert second.is_over()
    second.wait()


def test_messages_between_stages_cost_what_collectives_do_unless_said() -> None:
    assert pipeline_rate_of(parse(words("--alpha-us 7 --gbyte-per-s 3"))) == Rate(alpha_us=7.0, gbyte_per_s=3.0)
    options = parse(words("--alpha-us 7 --pipeline-alpha-us 0 --pipeline-gbyte-per-s 12"))
    assert pipeline_rate_of(options) == Rate(alpha_us=0.0, gbyte_per_s=12.0)
