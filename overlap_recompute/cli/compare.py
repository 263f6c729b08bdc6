"""`overlap-recompute compare`: all arms at one memory budget, simulated."""

import argparse
import json
from typing import Any, TextIO

from overlap_recompute.cli.commands import Command
from overlap_recompute.cli.parser import one_of
from overlap_recompute.cli.plan_texts import in_mib, in_ms
from overlap_recompute.cli.room import shortage_text
from overlap_recompute.cli.sources import add_budget_arguments, add_source_arguments, budget_of, hardware_of, profile_of
from overlap_recompute.cli.status_line import StatusLine
from overlap_recompute.cli.tables import table
from overlap_recompute.plan.profile import Layout, Profile
from overlap_recompute.plan.split import layout_text
from overlap_recompute.planner.comparison import ARMS, PARTITIONED, STOCK_FULL, ArmResult, run_arms
from overlap_recompute.planner.infeasible import SEARCHING
from overlap_recompute.simulator.energy import Prices, TokenCost, token_cost
from overlap_recompute.simulator.hardware import Hardware

DESCRIPTION = """\
Plan and simulate every way to recompute at one memory budget: no recompute, stock full recompute, the baselines and
our planners; with the time, the throughput, the memory, and for named hardware the energy and the price of a billion
tokens.
"""
EPILOG = """examples:
  overlap-recompute compare profile.json --memory-gib 4
  overlap-recompute compare --model gpt-13b --hardware a100-80gb-pcie --tensor-parallel 4 --pipeline-parallel 2
  overlap-recompute compare profile.json --memory-gib 4 --arms none,stock-full,full,heu,mix,opt --json
"""
ALL_ARMS = (*ARMS, "opt", *(f"{name}{PARTITIONED}" for name in ("heu", "opt", "adapipe")))
LEAST_GAIN = 0.005
"""Below it a difference is none: a simulation tells no smaller one."""
LEAST_TOLD = 0.0005
"""Below it a difference would be told as 0.0 %."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_source_arguments(parser)
    add_budget_arguments(parser)
    parser.add_argument("--arms", metavar="NAME,...", default=",".join(ARMS), help=f"of {', '.join(ALL_ARMS)}")
    parser.add_argument("--json", action="store_true", help="write one JSON object")


def run(options: argparse.Namespace, out: TextIO) -> int:
    """Compare and write the table."""
    names = arms_of(options.arms)
    profile = profile_of(options)
    budget_bytes, hardware = budget_of(options, profile), hardware_of(options)
    with StatusLine() as line:
        arms = run_arms(profile, names, budget_bytes, progress=lambda name: line.show(f"planning {name}"))
    if options.json:
        data = {
            "schema": "comparison/1",
            "budget_bytes": budget_bytes,
            "arms": [as_data(arm, hardware) for arm in arms],
        }
        out.write(json.dumps(data, indent=2) + "\n")
    else:
        out.write(_report(profile, arms, budget_bytes, hardware))
    return 0 if any(arm.result for arm in arms) else 1


def arms_of(text: str) -> tuple[str, ...]:
    """The arms that a flag names, each once.

    Raises:
        ConfigError: one of them is not known.
    """
    return tuple(dict.fromkeys(one_of("--arms", name.strip(), ALL_ARMS) for name in text.split(",")))


def devices_of(layout: Layout) -> int:
    """Of the whole job."""
    return layout.tensor_parallel * layout.pipeline_parallel * layout.data_parallel * layout.context_parallel


def cost_of(arm: ArmResult, hardware: Hardware | None) -> TokenCost | None:
    """Energy and price of the arm's tokens, where the hardware is known."""
    if arm.result is None or arm.plan is None or hardware is None:
        return None
    prices = Prices(power_w=hardware.power_w, usd_per_device_hour=hardware.usd_per_gpu_hour)
    return token_cost(arm.result, devices_of(arm.plan.layout), prices)


def as_data(arm: ArmResult, hardware: Hardware | None) -> dict[str, Any]:
    """An arm as plain values."""
    if arm.result is None or arm.plan is None:
        return {"arm": arm.name, "fits": False, "is_short_of_memory": arm.is_short, "reason": arm.reason}
    result, cost = arm.result, cost_of(arm, hardware)
    return {
        "arm": arm.name,
        "fits": True,
        "layers": layout_text(arm.plan.layout.split),
        "iteration_us": result.iteration_us,
        "tokens_per_s": result.tokens_per_s,
        "tflops_per_gpu": result.tflops_per_gpu,
        "mfu": result.mfu,
        "bubble_fraction": result.bubble_fraction,
        "hidden_us": sum(stage.hidden_us for stage in result.stages) / len(result.stages),
        "exposed_us": sum(stage.exposed_us for stage in result.stages) / len(result.stages),
        "peak_bytes": result.peak_bytes,
        "joules_per_billion_tokens": None if cost is None else cost.joules,
        "usd_per_billion_tokens": None if cost is None else cost.usd,
    }


def _report(profile: Profile, arms: tuple[ArmResult, ...], budget_bytes: int, hardware: Hardware | None) -> str:
    rows = [as_data(arm, hardware) for arm in arms]
    fitting = [row for row in rows if row["fits"]]
    base_us = next((row["iteration_us"] for row in fitting if row["arm"] == STOCK_FULL), None)
    header = ["arm", "iteration", "tokens/s", "x stock full", "bubble", "hidden", "exposed", "peak"]
    header += ["kWh", "USD"] * (hardware is not None)
    cells = [_cells(row, base_us, hardware is not None) for row in fitting]
    origin = profile.origin
    lines = [
        f"model: {profile.model}",
        f"times: {origin.source}, {origin.hardware}{f' ({origin.note})' if origin.note else ''}",
        f"budget: {in_mib(budget_bytes)} a rank; every figure is simulated",
        "",
        table(header, cells) if cells else f"no arm fits: {shortage_text(profile, budget_bytes)}",
        "",
    ]
    if fitting:
        lines += [*_verdict(fitting), "hidden, exposed: recompute inside and outside of waits, mean of the stages"]
    for row in (row for row in rows if not row["fits"]):
        found = row["reason"].removeprefix("found ").partition("; expected ")[0]
        lines.append(f"{row['arm']} {'does not fit' if row['is_short_of_memory'] else 'has no plan'}: {found}")
    if hardware is not None and fitting:
        lines.append(
            f"kWh, USD: of a billion tokens, all devices, at a stated {hardware.power_w:g} W and "
            f"{hardware.usd_per_gpu_hour:g} USD an hour (docs/hardware.md), not measured; without hosts and cooling"
        )
    return "\n".join([*lines, ""])


def _verdict(rows: list[dict[str, Any]]) -> list[str]:
    """The fastest of ours against the fastest of the others that recompute, in a sentence; nothing without one side."""
    ours = [row for row in rows if row["arm"].removesuffix(PARTITIONED) in SEARCHING]
    others = [row for row in rows if row not in ours and row["arm"] != "none"]
    if not ours or not others:
        return []
    best, other = (min(side, key=lambda row: float(row["iteration_us"])) for side in (ours, others))
    gain = other["iteration_us"] / best["iteration_us"] - 1
    if gain < LEAST_GAIN:
        recomputed = best["hidden_us"] + best["exposed_us"]
        why = "hides too little to be faster" if recomputed else "recomputes nothing: memory is not short"
        pace = f"{abs(gain):.1%} {'faster' if gain > 0 else 'slower'} than" if abs(gain) >= LEAST_TOLD else "as fast as"
        return [f"no gain: {best['arm']}, the best of ours, is {pace} {other['arm']}; it {why}", ""]
    return [f"{best['arm']} is {gain:.1%} faster than {other['arm']}, the best of the others that recompute", ""]


def _cells(row: dict[str, Any], base_us: float | None, priced: bool) -> list[str]:
    cells = [
        row["arm"],
        in_ms(row["iteration_us"]),
        f"{row['tokens_per_s']:,.0f}",
        "" if base_us is None else f"{base_us / row['iteration_us']:.3f}",
        f"{row['bubble_fraction']:.1%}",
        in_ms(row["hidden_us"]),
        in_ms(row["exposed_us"]),
        in_mib(row["peak_bytes"]),
    ]
    if priced:
        cells += [f"{row['joules_per_billion_tokens'] / 3.6e6:,.0f}", f"{row['usd_per_billion_tokens']:,.0f}"]
    return cells


COMMAND = Command(description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run)
