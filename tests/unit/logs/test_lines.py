"""The log's lines, letter by letter: people's log readers depend on them."""

import math
import re

from megatron.pretrain.logs.lines import evaluation_line, event_line, iteration_line, timer_lines
from tests.unit.logs.samples import EVALUATION, EVENT, iteration


def test_iteration_line_on_a_cpu() -> None:
    assert iteration_line(iteration(2), device_type="cpu", throughput=True) == (
        " iteration        2/     100 | consumed samples:           32 | elapsed time per iteration (ms): 412.2 |"
        " throughput per rank (TFLOP/s/rank): 0.0123 | tokens per second: 4967.8 | learning rate: 3.000000E-04 |"
        " global batch size:    16 | lm loss: 8.312500E+00 | loss scale: 1.0 | grad norm: 1.500 |"
        " number of skipped iterations:   0 | number of nan iterations:   0 |"
    )


def test_iteration_line_on_a_gpu_with_all_options() -> None:
    record = iteration(
        100, tflops_per_rank=412.34, tokens_per_s=1_234_567.0, loss_scale=65536.0, num_zeros=12, params_norm=98.7654,
        skipped_iterations=2, nan_iterations=1,
    )  # fmt: skip
    assert iteration_line(record, device_type="cuda", throughput=True) == (
        " iteration      100/     100 | consumed samples:         1600 | elapsed time per iteration (ms): 412.2 |"
        " throughput per GPU (TFLOP/s/GPU): 412.3 | tokens per second: 1234567.0 | learning rate: 3.000000E-04 |"
        " global batch size:    16 | lm loss: 8.312500E+00 | loss scale: 65536.0 | grad norm: 1.500 | num zeros: 12 |"
        " params norm: 98.765 | number of skipped iterations:   2 | number of nan iterations:   1 |"
    )


def test_without_log_throughput_the_line_is_megatron_s_default() -> None:
    line = iteration_line(iteration(2), device_type="cuda", throughput=False)
    assert "throughput" not in line
    assert "tokens per second" not in line


def test_a_loss_that_was_not_measured_is_left_out_and_a_nan_is_shown() -> None:
    skipped = iteration_line(iteration(2, loss=None, grad_norm=None), device_type="cpu", throughput=False)
    assert "lm loss" not in skipped
    assert "grad norm" not in skipped
    assert "| lm loss: NAN |" in iteration_line(iteration(2, loss=math.nan), device_type="cpu", throughput=False)


def test_a_reader_of_megatron_s_log_finds_its_figures() -> None:
    line = iteration_line(iteration(2), device_type="cuda", throughput=True)
    pattern = (
        r"iteration\s+(\d+)/\s*(\d+) \|.*elapsed time per iteration \(ms\): ([\d.]+) \|"
        r".*throughput per GPU \(TFLOP/s/GPU\): ([\d.]+) \|.*lm loss: ([\d.E+-]+) \|"
    )
    match = re.search(pattern, line)
    assert match is not None
    assert match.groups() == ("2", "100", "412.2", "0.0", "8.312500E+00")


def test_evaluation_event_and_timer_lines() -> None:
    assert evaluation_line(EVALUATION) == (
        " validation loss at iteration 10 on validation set | lm loss value: 5.250000E+00 | lm loss PPL: 1.905660E+02 |"
    )
    assert event_line(EVENT) == " saved a checkpoint (iteration 10)"
    assert timer_lines(iteration(2)) == ()
    assert timer_lines(iteration(2, timers_ms={"optimizer": 1.5, "forward-backward": 400.0})) == (
        "max time across ranks (ms):",
        "    forward-backward....: 400.00",
        "    optimizer...........: 1.50",
    )
