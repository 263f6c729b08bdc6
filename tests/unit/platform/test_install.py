"""install_platform: what it chooses, refuses, and leaves alone."""

import os
import pathlib
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from megatron.pretrain.platform import install, install_platform
from overlap_recompute.plan.errors import ConfigError, UserError

ROOT = pathlib.Path(__file__).resolve().parents[3]
HYGIENE = """
import sys, types, torch
zeros, cuda = torch.zeros, torch.cuda
from megatron.pretrain.platform import install_platform
assert install_platform("gloo") == torch.device("cpu")
finders = len(sys.meta_path)
assert install_platform("gloo") == torch.device("cpu")
assert len(sys.meta_path) == finders, "installed twice"

import megatron.core.optimizer, megatron.core.tensor_parallel.random as random, megatron.core.models.gpt
assert random.torch is not torch and random.torch.cuda.current_device() == torch.device("cpu")
assert torch.zeros is zeros and torch.cuda is cuda and cuda.current_device.__module__ == "torch.cuda"

tensor = torch.zeros(2)
calls = "def kind(t): return t.type()\\ndef move(t): return t.cuda()"
inside, outside = types.ModuleType("megatron.core.anything"), types.ModuleType("megatron.corelike")
for module in (inside, outside):
    exec(calls, module.__dict__)
assert inside.kind(tensor) == "torch.cuda.FloatTensor" and inside.move(tensor) is tensor
assert outside.kind(tensor) == tensor.type() == "torch.FloatTensor"
assert tensor.type(torch.float64).dtype == torch.float64
if not torch.cuda.is_available():
    try:
        outside.move(tensor)
        raise SystemExit("Tensor.cuda() worked outside megatron.core")
    except (AssertionError, RuntimeError):
        pass
for name in ("transformer_engine", "apex"):
    try:
        __import__(name)
        raise SystemExit(f"{name} is not hidden")
    except ModuleNotFoundError as error:
        assert "hidden on the CPU platform" in str(error), error
print("clean")
"""


def test_hygiene_of_a_fresh_process() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", HYGIENE], capture_output=True, text=True, timeout=200, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "clean\n"
    assert "not installed" not in result.stderr, result.stderr  # stock's warnings about Apex and Transformer Engine


def test_refuses_to_come_too_late() -> None:
    assert "megatron.core.jit" in sys.modules or __import__("megatron.core.jit")
    with pytest.raises(UserError, match="imported before the platform was installed"):
        install._require_not_imported()


def test_refuses_an_unknown_backend() -> None:
    with pytest.raises(ConfigError, match="--distributed-backend mpi"):
        install_platform("mpi")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_nccl_needs_cuda() -> None:
    with pytest.raises(ConfigError, match="sees no CUDA device.*--distributed-backend gloo"):
        install_platform("nccl")


class FakeCuda:
    """torch.cuda of a host with two devices."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.chosen: list[int] = []
        for name in install.LOCAL_RANK_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "set_device", self.chosen.append)


@pytest.mark.parametrize(("variable", "rank"), [("LOCAL_RANK", 1), ("SLURM_LOCALID", 1), ("NOTHING", 0)])
def test_nccl_takes_the_device_of_the_local_rank(monkeypatch: pytest.MonkeyPatch, variable: str, rank: int) -> None:
    cuda = FakeCuda(monkeypatch)
    monkeypatch.setenv(variable, str(rank))
    assert install._cuda_of_this_rank() == torch.device("cuda", rank)
    assert cuda.chosen == [rank]
    with pytest.raises(UserError, match="one platform in a process"):  # this process has the CPU's
        install_platform("nccl")


def test_more_ranks_than_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="local rank 2 on a host with 2 visible"):
        install_platform("nccl")


@pytest.mark.parametrize("version", ["0.15.3", "0.17.0", None])
def test_refuses_another_megatron_core(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    def answer(name: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", answer)
    with pytest.raises(UserError, match=f"found megatron-core {version or 'absent'}.*install megatron-core==0.16.1"):
        install._require_supported_version()
