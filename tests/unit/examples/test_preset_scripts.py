"""The scripts that train a preset: what they hand to torchrun is a command line that the trainer accepts."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from megatron.pretrain.config import PretrainConfig, parse_command_line, validate
from overlap_recompute.plan.presets import PRESETS, preset_named

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sorted(path for path in (ROOT / "examples").glob("*.sh") if re.match(r"(gpt_|llama|mixtral)", path.name))
CLUSTER = ("NNODES", "NODE_RANK", "GPUS_PER_NODE", "MASTER_ADDR", "MASTER_PORT", "TP", "PP", "EP", "MICRO_BATCH",
           "GLOBAL_BATCH", "DATA_PATH", "TOKENIZER_MODEL", "RUN_DIR", "BACKEND", "TORCHRUN")  # fmt: skip


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A folder with a torchrun that writes its words, one a line."""
    launcher = tmp_path / "torchrun"
    launcher.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    launcher.chmod(0o755)
    return tmp_path


def call(script: Path, fake: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in CLUSTER}
    environment = kept | {"PATH": f"{fake}:{os.environ['PATH']}"} | variables
    return subprocess.run(
        ["bash", str(script), *words], env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def launched(script: Path, fake: Path, *words: str, **variables: str) -> tuple[dict[str, str], PretrainConfig]:
    """Options of the launcher, and the configuration of the run that it would start."""
    result = call(script, fake, *words, **variables)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.split("\n")[:-1]
    place = lines.index("pretrain_gpt.py")
    options = dict(zip(lines[:place:2], lines[1:place:2], strict=True))
    world = int(options["--nnodes"]) * int(options["--nproc-per-node"])
    ranks = {"RANK": "0", "WORLD_SIZE": str(world), "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    config = parse_command_line(lines[place + 1 :], ranks)
    validate(config)
    return options, config


def test_there_is_a_script_for_every_preset(fake: Path) -> None:
    models = {re.sub(r"^mixtral-moe", "mixtral", path.stem.replace("_", "-")) for path in SCRIPTS}
    assert models == {preset.name for preset in PRESETS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_trainer_accepts_what_a_script_starts(script: Path, fake: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], timeout=200, check=False).returncode == 0
    assert os.access(script, os.X_OK)
    options, config = launched(script, fake)
    name = re.sub(r"^mixtral-moe", "mixtral", script.stem.replace("_", "-"))
    preset = preset_named(name, flag="x")
    assert (config.model.num_layers, config.model.hidden_size) == (preset.layers, preset.hidden)
    assert config.data.vocab_size == preset.vocabulary - 1
    assert config.overlap.overlap_recompute and config.precision.bf16
    parallel = config.parallel
    assert parallel.tensor_model_parallel_size <= int(options["--nproc-per-node"])
    assert config.num_microbatches >= 4 * parallel.pipeline_model_parallel_size
    assert options["--master-addr"] == "127.0.0.1" and options["--node-rank"] == "0"


def test_cluster_and_layout_come_from_the_environment(fake: Path, tmp_path: Path) -> None:
    script = ROOT / "examples" / "gpt_7b.sh"
    options, config = launched(
        script, fake, "--train-iters", "5", NNODES="2", NODE_RANK="1", GPUS_PER_NODE="4", MASTER_ADDR="first",
        MASTER_PORT="4321", TP="2", PP="4", GLOBAL_BATCH="64", MICRO_BATCH="2", RUN_DIR=str(tmp_path), BACKEND="gloo",
    )  # fmt: skip
    assert options == {
        "--nnodes": "2", "--node-rank": "1", "--nproc-per-node": "4", "--master-addr": "first", "--master-port": "4321",
    }  # fmt: skip
    parallel = config.parallel
    assert (parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size) == (2, 4)
    assert (config.training.global_batch_size, config.training.micro_batch_size, config.train_iters) == (64, 2, 5)
    assert config.checkpoint.save == f"{tmp_path}/checkpoints"
    assert config.distributed.distributed_backend == "gloo"


def test_real_text_needs_its_tokenizer(fake: Path) -> None:
    script = ROOT / "examples" / "llama2_7b.sh"
    _, config = launched(script, fake, DATA_PATH="data/text", TOKENIZER_MODEL="/dev/null")
    assert (config.data.data_path, config.data.mock_data) == (("data/text",), False)
    refused = call(script, fake, DATA_PATH="data/text")
    assert refused.returncode != 0 and "TOKENIZER_MODEL: goes with DATA_PATH" in refused.stderr


def test_a_missing_launcher_is_named(fake: Path) -> None:
    refused = call(ROOT / "examples" / "gpt_7b.sh", fake, TORCHRUN="no-such-launcher")
    assert refused.returncode == 2
    assert "found no program no-such-launcher" in refused.stderr
