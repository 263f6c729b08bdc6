"""Seams: each fits the installed megatron-core, and refuses another shape."""

import importlib
import logging
import warnings
from importlib import metadata
from types import ModuleType

import numpy as np
import pytest
import torch

from megatron.pretrain.platform import versions
from megatron.pretrain.platform.hook import MegatronCoreFinder
from megatron.pretrain.platform.log_filters import DropMessages, quiet_stock_messages
from megatron.pretrain.platform.seam import Expected, Seam
from megatron.pretrain.platform.seams import CPU_SEAMS, STOCK_FIXES
from overlap_recompute.plan.errors import UserError

SEAMS = STOCK_FIXES + CPU_SEAMS


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: f"{seam.module.rsplit('.', 1)[1]}: {seam.purpose[:30]}")
def test_fits_and_is_harmless_twice(seam: Seam) -> None:
    module = importlib.import_module(seam.module)
    before = {name: value for name, value in vars(module).items() if callable(value) and name != "jit_fuser"}
    seam.apply(module)
    changed = [name for name, value in before.items() if getattr(module, name) is not value]
    assert all(getattr(module, name).__module__.startswith("megatron.pretrain.platform") for name in changed)
    assert not any(hasattr(getattr(module, name), "__wrapped__") for name in changed), "wrapped twice"
    assert seam.purpose


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def work(a, b, c): ...", r"found work\(a, b, c\) in some.module; expected work\(a, b\)"),
        ("other = 1", "found no function work in some.module"),
        ("work = 1", "found no function work in some.module"),
    ],
)
def test_refuses_another_shape(source: str, words: str) -> None:
    adjusted: list[ModuleType] = []
    expected = Expected(name="work", parameters=("a", "b"))
    seam = Seam(module="some.module", purpose="test", expects=(expected,), adjust=adjusted.append)
    module = ModuleType("some.module")
    exec(source, module.__dict__)
    with pytest.raises(UserError, match=f"{words}.*megatron-core 0.16.1.*install megatron-core==0.16.1"):
        seam.apply(module)
    assert not adjusted


def test_the_hook_finds_only_megatron_core() -> None:
    finder = MegatronCoreFinder(torch.device("cuda", 0), STOCK_FIXES, facade=None)
    for name in ("json", "megatron", "megatron.pretrain", "megatron.corelike", "apex"):
        assert finder.find_spec(name) is None


def test_megatron_core_compiles_nothing() -> None:
    def function() -> None: ...

    assert importlib.import_module("megatron.core.jit").jit_fuser(function) is function


def test_counts_become_numpy() -> None:
    move = importlib.import_module("megatron.core.transformer.moe.moe_utils").maybe_move_tensor_to_cpu
    counts = torch.tensor([1, 2])
    assert isinstance(move(counts, as_numpy=True), np.ndarray)
    assert move(counts) is counts
    assert move(None, as_numpy=True) is None


@pytest.mark.usefixtures("rank")
def test_the_tracker_forks_the_cpu_generator_quietly(caplog: pytest.LogCaptureFixture) -> None:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    before = torch.get_rng_state()
    with get_cuda_rng_tracker().fork():
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with get_cuda_rng_tracker().fork():
        assert not torch.equal(torch.rand(3), first)
    assert not caplog.records


def test_stock_warnings_are_quiet_and_others_are_not() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.resetwarnings()
        quiet_stock_messages(on_cpu=True)
        for text, module in (
            ("Apex is not installed. Falling back to Torch Norm", "megatron.core.models.backends"),
            ("full scope is deprecated. Use empty cuda_graph_scope to capture the whole layer.", "megatron.core.x"),
            ("When using async grad allreduce it is recommended to set the environment", "megatron.core.x"),
            ("Apex is not installed. Falling back to Torch Norm", "somebody.else"),
            ("something new", "megatron.core.x"),
        ):
            warnings.warn_explicit(text, UserWarning, "file.py", 1, module=module)
    assert [str(warning.message) for warning in shown] == [
        "Apex is not installed. Falling back to Torch Norm",
        "something new",
    ]


def test_messages_are_dropped_by_text() -> None:
    records = [logging.LogRecord("n", logging.WARNING, "f", 1, text, None, None) for text in ("CPU RNG x", "other")]
    assert [DropMessages("CPU RNG").filter(record) for record in records] == [False, True]
    quiet_stock_messages(on_cpu=True)
    filters = logging.getLogger("megatron.core.tensor_parallel.random").filters
    assert sum(isinstance(known, DropMessages) for known in filters) == 1


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu, on_gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert versions(on_cpu).megatron_core == "0.16.1"
    assert versions(on_cpu).torch == torch.__version__
    installed = {"megatron-core": "0.16.1", "transformer-engine": "2.9"}

    def answer(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", answer)
    assert "Transformer Engine: 2.9 (not used on the CPU), Apex: absent" in str(versions(on_cpu))
    assert "Transformer Engine: 2.9, Apex: absent" in str(versions(on_gpu))
