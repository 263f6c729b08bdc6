"""The figures of the README are those of the benchmarks' result files."""

import json
import pathlib
import re
import statistics

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CASES = {
    "TP=2, 400 Mbit/s": "TP=2 400mbit",
    "TP=2, 150 Mbit/s": "TP=2 150mbit",
    "TP=2, 400 Mbit/s, Llama layers": "TP=2 Llama 400mbit",
    "TP=2 with sequence parallelism, 400 Mbit/s": "TP=2 SP 400mbit",
    "PP=2, 100 Mbit/s, first stage recomputes": "PP=2 100mbit",
    "PP=2, 400 Mbit/s, first stage recomputes": "PP=2 400mbit",
}


def ratios(file: str, case: str) -> dict[str, float]:
    """Time of each arm over time without recompute."""
    arms = json.loads((ROOT / "benchmarks" / file).read_text())[case]["arms"]
    times = {name: arm.get("seconds") or statistics.median(arm["times_s"]) for name, arm in arms.items()}
    return {name: time_s / times["none"] for name, time_s in times.items()}


def test_the_table_of_overlap_is_that_of_the_benchmark() -> None:
    rows = re.findall(r"^\| (.*Mbit/s.*?) \| ([\d.]+) \| ([\d.]+) \| \*\*([\d.]+)\*\* \|$", README, re.MULTILINE)
    assert [label for label, *_ in rows] == list(CASES)
    for label, *shown in rows:
        found = ratios("overlap_cpu.json", CASES[label])
        arms = ("stock full", "same units, on demand", "overlapped")
        assert shown == [f"{found[arm]:.3f}" for arm in arms], label


def test_what_weight_gradients_in_windows_bring_is_what_was_measured() -> None:
    shown = re.search(r"150 Mbit/s takes ([\d.]+) of the time without recompute.* ([\d.]+)x the throughput", README)
    assert shown is not None
    found = ratios("overlap_cpu.json", "TP=2 150mbit")
    delayed = found["overlapped, weight gradients too"]
    assert [*shown.groups()] == [f"{delayed:.3f}", f"{found['stock full'] / delayed:.2f}"]


def test_what_the_schedule_alone_takes_is_what_was_measured() -> None:
    shown = re.search(r"which by itself takes ([\d.]+) and ([\d.]+) of stock", README)
    assert shown is not None
    cases = ("PP=2 100mbit", "PP=2 400mbit")
    found = [ratios("overlap_cpu.json", case)["our schedule, nothing dropped"] for case in cases]
    assert [*shown.groups()] == [f"{value:.3f}" for value in found]


def test_what_the_plan_takes_is_what_was_measured() -> None:
    words = " ".join(README.split())
    shown = re.search(r"takes ([\d.]+) of the time of the best plan .* \(`checkmate`\), and ([\d.]+) of stock", words)
    assert shown is not None
    found = ratios("planned_cpu.json", "PP=2 VPP=2 100mbit")
    ours = min(found["plan heu"], found["plan mix"])
    others = {name: value for name, value in found.items() if name.startswith("plan ")}
    assert min(others["plan checkmate"], others["plan adapipe"]) == others["plan checkmate"]
    assert [*shown.groups()] == [f"{ours / found['plan checkmate']:.2f}", f"{ours / found['stock full']:.2f}"]
