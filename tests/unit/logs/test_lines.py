"""The log's lines, letter by letter: people's log readers depend on them."""

import math
import re

from megatron.pretrain.logs.lines import evaluation_line, event_line, iteration_line, overlap_lines, timer_lines
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


def test_losses_of_routers_follow_the_loss_as_in_megatron_lm() -> None:
    record = iteration(2, auxiliary_losses={"load_balancing_loss": 1.0125, "z_loss": 1.9})
    line = iteration_line(record, device_type="cpu", throughput=False)
    assert " | lm loss: 8.312500E+00 | load_balancing_loss: 1.012500E+00 | z_loss: 1.900000E+00 | loss scale: " in line


def test_a_reader_of_megatron_s_log_finds_its_figures() -> None:
    line = iteration_line(iteration(2), device_type="cuda", throughput=True)
    pattern = (
        r"iteration\s+(\d+)/\s*(\d+) \|.*elapsed time per iteration \(ms\): ([\d.]+) \|"
        r".*throughput per GPU \(TFLOP/s/GPU\): ([\d.]+) \|.*lm loss: ([\d.E+-]+) \|"
    )
    match = re.search(pattern, line)
    assert match is not None
    assert match.groups() == ("2", "100", "412.2", "0.0", "8.312500E+00")


def test_the_line_of_overlapped_recompute_has_predicted_beside_measured() -> None:
    assert overlap_lines(iteration(2)) == overlap_lines(iteration(2, extra={"another/figure": 1.0})) == ()
    measured = {
        "hidden_recompute_ms": 223.14, "exposed_recompute_ms": 1.5, "windows/tp_backward": 36.0,
        "window_ms/tp_backward": 300.25, "filled_ms/tp_backward": 220.0, "overrun_ms/tp_backward": 1.0,
        "kept_bytes_per_microbatch": 3.5 * 2**20, "prefetched_peak_bytes": 2.0**20,
    }  # fmt: skip
    (line,) = overlap_lines(iteration(2, extra={f"overlap/{name}": value for name, value in measured.items()}))
    assert line == (
        " recompute (ms): hidden 223.1, exposed 1.5 | kept per microbatch (MiB): 3.50 | most recomputed ahead (MiB): "
        "1.00 | tp_backward: 36 windows of 300.2 ms, 220.0 filled |"
    )
    planned = measured | {"predicted_exposed_ms": 0.25, "predicted_iteration_ms": 400.0, "bubble_fraction": 0.125}
    planned["delayed_wgrad_ms"] = 12.5
    (line,) = overlap_lines(iteration(2, extra={f"overlap/{name}": value for name, value in planned.items()}))
    assert (
        "exposed 1.5 | predicted exposed (ms): 0.2 | predicted time per iteration (ms): 400.0 | "
        "weight gradients behind communication (ms): 12.5 | bubble: 12.5% |" in line
    )


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
    assert timer_lines(iteration(2, timers_ms={"optimizer": 1.5}, timers_min_ms={"optimizer": 0.25})) == (
        "(min, max) time across ranks (ms):",
        "    optimizer....: (0.25, 1.50)",
    )
    by_rank = {"optimizer": (0.25, 1.5), "forward-send": (0.0, 2.0)}
    assert timer_lines(iteration(2, timers_ms={"optimizer": 1.5}, timers_by_rank_ms=by_rank)) == (
        "times across ranks (ms):",
        "  forward-send:",
        "     rank  1: 2.00",
        "  optimizer:",
        "     rank  0: 0.25",
        "     rank  1: 1.50",
    )
