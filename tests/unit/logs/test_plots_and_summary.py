"""The picture and the summary of a run, and the two tools that make them."""

import importlib.util
import json
import math
import struct
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from megatron.pretrain.logs.metrics_file import open_metrics_file
from megatron.pretrain.logs.metrics_reader import read_metrics
from megatron.pretrain.logs.plots import Curve, plot_loss
from megatron.pretrain.logs.summary import render, summarize
from overlap_recompute.plan.errors import ConfigError, DataError
from tests.unit.logs.samples import EVALUATION, EVENT, FACTS, iteration

TOOLS = Path(__file__).resolve().parents[3] / "tools"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 40 iterations with a NaN, a validation loss and a checkpoint."""
    now_s = [0.0]
    sink = open_metrics_file(tmp_path / "base" / "metrics.jsonl", FACTS, lambda: now_s[0])
    for number in range(1, 41):
        now_s[0] += 0.5
        loss = math.nan if number == 20 else 8.0 / math.sqrt(number)
        sink.write(iteration(number, train_iters=40, loss=loss, nan_iterations=int(number == 20)))
    sink.write(replace(EVALUATION, iteration=40, loss=1.5))
    sink.write(replace(EVENT, iteration=40))
    sink.close()
    return tmp_path / "base"


def test_a_png_of_readme_size(run: Path, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "loss.png"
    plot_loss([Curve(label="base", metrics=read_metrics(run))], picture, yardsticks={"unigrams": 5.0})
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">II", content[16:24]) == (1200, 675)
    assert [path.name for path in picture.parent.iterdir()] == ["loss.png"]


def test_an_svg_names_runs_and_yardsticks_and_is_reproducible(run: Path, tmp_path: Path) -> None:
    metrics = read_metrics(run)
    curves = [Curve(label="first", metrics=metrics), Curve(label="second", metrics=metrics)]
    pictures = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for picture in pictures:
        plot_loss(curves, picture, yardsticks={"unigram entropy": 5.0}, over_tokens=True, title="A title")
    text = pictures[0].read_text()
    for word in (
        "first",
        "second",
        "second, validation",
        "unigram entropy: 5.00",
        "A title",
        "tokens",
        "nats per token",
    ):
        assert f">{word}" in text or word in text
    assert text == pictures[1].read_text()


def test_a_run_of_many_points_is_smoothed(tmp_path: Path) -> None:
    sink = open_metrics_file(tmp_path / "metrics.jsonl", FACTS)
    for number in range(1, 201):
        sink.write(iteration(number, loss=3.0 + (-1) ** number))
    metrics = read_metrics(tmp_path)
    plot_loss([Curve(label="noisy", metrics=metrics)], tmp_path / "loss.svg")
    assert (tmp_path / "loss.svg").read_text().count("stroke-opacity: 0.3") >= 1


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one(run: Path, tmp_path: Path) -> None:
    old = tmp_path / "loss.png"
    old.write_bytes(b"old")
    with pytest.raises(DataError, match="no loss in .*metrics.jsonl"):
        plot_loss([Curve(label="", metrics=replace(read_metrics(run), iterations=()))], old)
    with pytest.raises(ConfigError, match=r"loss\.jpg; expected one that ends in \.png"):
        plot_loss([Curve(label="", metrics=read_metrics(run))], tmp_path / "loss.jpg")
    with pytest.raises(ConfigError, match="cannot be written"):
        plot_loss([Curve(label="", metrics=read_metrics(run))], old / "loss.png")
    assert old.read_bytes() == b"old"


def test_matplotlib_is_optional(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        plot_loss([Curve(label="", metrics=read_metrics(run))], tmp_path / "loss.png")


def test_the_summary_of_a_complete_run(run: Path) -> None:
    text = render(summarize(read_metrics(run), yardsticks={"unigram entropy": 6.0}, plot_path=Path("loss.png")))
    assert text.splitlines() == [
        "Training finished: 40 of 40 iterations",
        "  model            3.4 M parameters",
        "  ranks            4 (TP=2, PP=2)",
        "  tokens seen      81,920",
        "  time             16.5 s in iterations, 20.0 s in all",
        "  speed            4,968 tokens/s, 0.0123 model TFLOP/s per rank",
        "  training loss    8.0000 -> 1.2649 nats per token (lowest 1.2649)",
        "  validation loss  1.5000 nats per token",
        "  unigram entropy  6.0000; the validation loss is below it (-4.5000)",
        "  not finite       1 iterations",
        "  checkpoint       runs/a",
        f"  metrics          {run}/metrics.jsonl",
        "  plot             loss.png",
    ]


def test_the_summary_of_a_run_that_was_stopped_and_one_that_went_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = open_metrics_file(path, FACTS)
    stopped = replace(EVENT, iteration=10, event="exit", message="received SIGTERM", details={})
    sink.write(iteration(10))
    sink.write(stopped)
    text = render(summarize(read_metrics(path), yardsticks={"unigrams": 2.0}))
    assert text.startswith("Training stopped: 10 of 100 iterations\n  stopped because  received SIGTERM\n")
    assert "the training loss is NOT below it (+6.3125)" in text
    assert "none saved" in text
    open_metrics_file(path, replace(FACTS, start_iteration=10)).write(iteration(100))
    text = render(summarize(read_metrics(path)))
    assert text.startswith("Training finished: 100 of 100 iterations, started 2 times\n")
    assert "SIGTERM" not in text


def test_the_summary_of_a_run_without_a_figure(tmp_path: Path) -> None:
    open_metrics_file(tmp_path / "metrics.jsonl", FACTS)
    text = render(summarize(read_metrics(tmp_path), yardsticks={"unigrams": 2.0}))
    assert "none logged that is finite" in text


def test_the_plot_tool(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = tool("plot_metrics").main
    picture = str(tmp_path / "loss.svg")
    assert main([str(run), f"other={run}", "--output", picture, "--yardstick", "uni=grams=5"]) == 0
    assert capsys.readouterr().out == f"{picture}\n"
    assert all(word in Path(picture).read_text() for word in ("base", "other", "uni=grams: 5.00"))
    assert main([str(tmp_path / "nothing"), "--output", picture]) == 2
    assert "no readable metrics file at" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(run), "--output", picture, "--yardstick", "five"])
    assert "expected NAME=VALUE" in capsys.readouterr().err


def test_the_summary_tool(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = tool("summarize_run").main
    assert main([str(run), "--yardstick", "unigrams=6"]) == 0
    assert "unigrams" in capsys.readouterr().out
    assert main([str(run), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["iterations"], summary["tokens"], summary["checkpoint"]) == (40, 81920, "runs/a")
    assert main([str(run / "nothing")]) == 2
