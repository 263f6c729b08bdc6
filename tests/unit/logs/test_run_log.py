"""The log as a whole: who writes, where to, and what a failing sink costs."""

import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from megatron.pretrain.config import LoggingOptions, World
from megatron.pretrain.logs.metrics_reader import read_metrics
from megatron.pretrain.logs.records import Record
from megatron.pretrain.logs.run_log import (
    RunLog,
    check_log_packages,
    metrics_file_of,
    open_run_log,
    package_versions,
)
from megatron.pretrain.logs.trackers import TensorBoardSink, scalars
from overlap_recompute.plan.errors import ConfigError
from tests.unit.logs.samples import EVALUATION, EVENT, FACTS, iteration

LAST = World(rank=3, world_size=4)


class MemorySink:
    """Keeps what it gets; fails while it is told to."""

    name = "memory"

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.advanced: list[int] = []
        self.full = False
        self.closed = 0

    def write(self, record: Record) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.records.append(record)

    def advance(self, iteration: int) -> None:
        self.advanced.append(iteration)

    def close(self) -> None:
        self.closed += 1


def test_every_sink_gets_every_record_and_is_closed_once() -> None:
    sinks = (MemorySink(), MemorySink())
    with RunLog(sinks) as log:
        assert log.writes
        log.advance(1)
        log.record(iteration(1))
        log.record(EVENT)
        log.close()
    assert [(sink.records, sink.advanced, sink.closed) for sink in sinks] == [([iteration(1), EVENT], [1], 1)] * 2


def test_a_full_disk_warns_once_loses_only_its_records_and_says_so_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    broken, healthy = MemorySink(), MemorySink()
    log = RunLog((broken, healthy))
    log.record(iteration(1))
    broken.full = True
    for number in (2, 3, 4):
        log.record(iteration(number))
    broken.full = False
    log.record(iteration(5))
    assert [record.iteration for record in broken.records] == [1, 5]
    assert [record.iteration for record in healthy.records] == [1, 2, 3, 4, 5]
    assert len(caplog.messages) == 1
    assert "memory: a record of iteration 2 is lost" in caplog.messages[0]
    assert "No space left on device" in caplog.messages[0]
    log.close()
    assert caplog.messages[1:] == ["memory: 3 record(s) of this run could not be written."]


def test_a_sink_that_cannot_be_closed_does_not_keep_others_open(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(MemorySink):
        def close(self) -> None:
            raise OSError(28, "No space left on device")

    healthy = MemorySink()
    RunLog((healthy, Stuck())).close()
    assert healthy.closed == 1
    assert "could not be closed" in caplog.messages[0]


def test_a_tensorboard_folder_that_cannot_be_written_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", full)
    options = LoggingOptions(tensorboard_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"found --tensorboard-dir .*\(No space left on device\)"):
        open_run_log(options, LAST, FACTS, train_iters=9)


def test_only_the_last_rank_writes(tmp_path: Path) -> None:
    for rank in range(4):
        with open_run_log(
            LoggingOptions(), World(rank=rank, world_size=4), FACTS, train_iters=9, save_folder=tmp_path
        ) as log:
            assert log.writes == (rank == 3)
            log.record(iteration(rank + 1))
    assert [record.iteration for record in read_metrics(tmp_path).iterations] == [4]


def test_where_the_metrics_file_goes(tmp_path: Path) -> None:
    assert metrics_file_of(LoggingOptions(metrics_file="a/b.jsonl"), tmp_path) == Path("a/b.jsonl")
    assert metrics_file_of(LoggingOptions(), tmp_path) == tmp_path / "metrics.jsonl"
    assert metrics_file_of(LoggingOptions(), None) is None


@pytest.mark.parametrize(
    ("options", "package"),
    [
        (LoggingOptions(wandb_project="p"), "wandb"),
        (LoggingOptions(tensorboard_dir="runs/tb"), "tensorboard"),
        (LoggingOptions(progress_bar="on"), "tqdm"),
    ],
)
def test_a_missing_package_is_an_error_on_every_rank_before_training(
    options: LoggingOptions, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"no Python package '{package}'.*pip install {package}"):
        check_log_packages(options)
    with pytest.raises(ConfigError):
        open_run_log(options, World(rank=0, world_size=4), FACTS, train_iters=9)
    check_log_packages(LoggingOptions())


def test_tags_are_megatron_s() -> None:
    everything = LoggingOptions(
        log_throughput=True, log_timers_to_tensorboard=True, log_memory_to_tensorboard=True,
        log_world_size_to_tensorboard=True, log_validation_ppl_to_tensorboard=True,
    )  # fmt: skip
    record = iteration(
        2, num_zeros=1, params_norm=2.0, peak_memory_max_bytes=3, timers_ms={"optimizer": 5.0},
        extra={"overlap/hidden_recompute_ms": 6.0},
    )  # fmt: skip
    found = {scalar.tag: scalar.value for scalar in scalars(record, everything, 4)}
    assert found == {
        "learning-rate": 3e-4, "batch-size": 16, "lm loss": 8.3125, "loss-scale": 1.0, "world-size": 4,
        "grad-norm": 1.5, "num-zeros": 1, "params-norm": 2.0, "mem-max-allocated-bytes": 3, "throughput": 0.01234,
        "tokens-per-second": 4967.8, "iteration-time": 0.41225, "optimizer-time": 0.005,
        "overlap/hidden_recompute_ms": 6.0,
    }  # fmt: skip
    evaluated = [scalar.tag for scalar in scalars(EVALUATION, everything, 4)]
    assert evaluated == ["lm loss validation", "lm loss validation ppl"]
    little = {scalar.tag for scalar in scalars(iteration(2, loss=None), LoggingOptions(), 4)}
    assert little == {"learning-rate", "batch-size", "loss-scale", "grad-norm"}
    assert list(scalars(EVENT, everything, 4)) == []
    experts = scalars(iteration(2, auxiliary_losses={"load_balancing_loss": 1.5}), LoggingOptions(), 4)
    assert [(found.value, found.by_samples) for found in experts if found.tag == "load_balancing_loss"] == [
        (1.5, False)
    ]


def test_tensorboard_shows_figures_over_iterations_and_samples(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(LoggingOptions(tensorboard_dir=str(tmp_path), tensorboard_log_interval=2), 4)
    for number in (1, 2, 3):
        sink.write(iteration(number, loss=float(number)))
    sink.write(EVALUATION)
    sink.write(EVENT)
    sink.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("lm loss")] == [(1, 1.0), (3, 3.0)]
    assert [event.step for event in events.Scalars("lm loss vs samples")] == [16, 48]
    assert [(event.step, event.value) for event in events.Scalars("lm loss validation")] == [(10, 5.25)]


class FakeWandb(ModuleType):
    """Stands in for the client: `init` fails as it does without a key or a network, unless offline."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = SimpleNamespace()  # type: ignore[assignment]
        self.calls: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **arguments: Any) -> "FakeWandb":
        self.calls.append(arguments)
        if arguments.get("mode") != "offline":
            raise self.Error("No API key configured")
        return self

    def log(self, figures: dict[str, float], step: int) -> None:
        if step == 3:
            raise self.Error("service died")
        self.logged.append((step, figures))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_goes_offline_without_a_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", client)
    options = LoggingOptions(wandb_project="p", wandb_exp_name="n")
    with open_run_log(options, LAST, FACTS, train_iters=9, save_folder=tmp_path) as log:
        for record in (iteration(2), iteration(3), replace(EVALUATION, iteration=4), EVENT):
            log.record(record)
    assert [call.get("mode") for call in client.calls] == [None, "offline"]
    assert client.calls[1]["dir"] == str(tmp_path / "wandb")
    assert client.calls[1]["config"]["config"] == {"model": {"num_layers": 4, "ffn_hidden_size": None}}
    assert [(step, figures.get("lm loss")) for step, figures in client.logged] == [(2, 8.3125), (4, None)]
    assert client.finished == 1
    assert "No API key configured" in caplog.text
    assert "service died" in caplog.text


def test_versions_name_what_decides_a_result() -> None:
    assert {"python", "torch", "megatron-core"} <= set(package_versions())


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
