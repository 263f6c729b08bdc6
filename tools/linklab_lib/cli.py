"""The command line of tools/linklab."""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence

from linklab_lib.console import Console
from linklab_lib.ending import RunEnd
from linklab_lib.links import COSTLY_RATE_BITS_PER_S, MAX_HOSTS, Lab, LabError, choose_cores, parse_links
from linklab_lib.measure import PairFigures, measure
from linklab_lib.network import Network, remove_leftovers, require_privileges
from linklab_lib.owner import Owner
from linklab_lib.ranks import CANNOT_START_STATUS, Ranks
from linklab_lib.stopping import Interrupted, StopSignals

READER_GONE_STATUS = 141
"""As a shell counts a program that SIGPIPE ended."""

DESCRIPTION = """
Run COMMAND as the ranks of several hosts that are joined by rate-limited links. The hosts are network namespaces of
this machine; root and the tools of iproute2 are needed. See docs/linklab.md.
"""
EPILOG = """
exit status: the worst of the ranks (128 + number where a signal ended it); 124 after --timeout-s; 125 when the
lab itself fails; 127 when the command does not start; 128 + number when a signal stops the lab before the ranks run.
example: linklab --hosts 2 --rate 400mbit --pin -- python pretrain_gpt.py --distributed-backend gloo ...
"""


def _between(low: float, high: float, kind: type[int] | type[float] = int) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not (math.isfinite(value) and low <= value <= high):
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return value

    parse.__name__ = "number" if kind is float else "whole number"  # argparse names it when the text is no number
    return parse


RATE_HELP = "of each host's link, in each direction: 400mbit; or one for each host: 400mbit,100mbit"
NUMBERS = (
    ("--hosts", _between(2, MAX_HOSTS), 2, "N", "number of hosts"),
    ("--ranks-per-host", _between(1, 64), 1, "K", "consecutive ranks that share a host"),
    ("--burst-kib", _between(64, 1 << 16), 128, "KIB", "what a link passes at once after a pause"),
    ("--queue-ms", _between(1, 60_000), 2000, "MS", "traffic that a link queues before it drops packets"),
    ("--timeout-s", _between(0.1, 1e7, float), 3600, "S", "stop the ranks after this time"),
    ("--grace-s", _between(0, 1e5, float), 10, "S", "what ranks get to end once another failed or they are told to"),
    ("--measure-s", _between(0.1, 60, float), 1, "S", "length of a measurement; there are three a pair of hosts"),
)
SWITCHES = {
    "--pin": "give every rank a core of its own, if there are enough",
    "--measure": "first measure what the links achieve",
    "--json": "write one JSON document to standard output; the ranks' output goes to standard error",
}


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with 2 when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="linklab",
        usage="linklab --rate RATE[,RATE...] [options] [--measure] [-- COMMAND ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    for flag, kind, default, unit, text in NUMBERS:
        parser.add_argument(flag, type=kind, default=default, metavar=unit, help=f"{text}; default {default:g}")
    parser.add_argument("--rate", required=True, metavar="RATE[,RATE...]", help=RATE_HELP)
    for flag, text in SWITCHES.items():
        parser.add_argument(flag, action="store_true", help=text)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.command[:1] == ["--"]:
        del arguments.command[0]
    if not arguments.command and not arguments.measure:
        parser.error("nothing to do: give -- COMMAND, or --measure, or both")
    return arguments


def build_lab(arguments: argparse.Namespace) -> Lab:
    """Hosts, links and ranks as the command line says.

    Raises:
        LabError: a rate is wrong, or the program to run does not exist.
    """
    links = parse_links(
        arguments.rate, hosts=arguments.hosts, burst_bytes=arguments.burst_kib * 1024, queue_ms=arguments.queue_ms
    )
    if arguments.command and shutil.which(arguments.command[0]) is None:
        raise LabError(
            f"no program {arguments.command[0]!r}",
            "a program on the PATH, or the path of one",
            "check the command after --",
            status=CANNOT_START_STATUS,
        )
    available = sorted(os.sched_getaffinity(0))
    world_size = len(links) * arguments.ranks_per_host
    cores = choose_cores(world_size, available) if arguments.pin else ()
    if arguments.pin and not cores:
        _say(f"--pin does nothing: {world_size} ranks, {len(available)} cores")
    if any(link.rate_bits_per_s > COSTLY_RATE_BITS_PER_S for link in links):
        _say("above 1 Gbit/s shaping takes processor time from the ranks: check with --measure")
    return Lab(links=links, ranks_per_host=arguments.ranks_per_host, cores=cores)


def main(argv: Sequence[str]) -> int:
    """Run the lab and return the exit status."""
    arguments = parse_arguments(argv)
    with StopSignals() as stop:
        try:
            return _run_lab(arguments, stop)
        except LabError as error:
            _say(str(error))
            return error.status
        except Interrupted as interruption:
            _say(f"stopped by {interruption}")
            return 128 + interruption.signal_number
        except BrokenPipeError:
            # What Python still holds for standard output would raise again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return READER_GONE_STATUS


def _run_lab(arguments: argparse.Namespace, stop: StopSignals) -> int:
    deadline_s = time.monotonic() + arguments.timeout_s
    lab = build_lab(arguments)
    hint = emulation_hint(lab)
    require_privileges(hint)
    for name in remove_leftovers():
        _say(f"removed {name}, left behind by a lab that was killed")
    network = Network(Owner.current(), lab, hint)
    figures: list[PairFigures] = []
    end = None
    with contextlib.ExitStack() as stack:
        stack.callback(network.remove)
        network.build(stop.checkpoint)
        if arguments.measure:
            for pair in measure(
                lab, network, duration_s=arguments.measure_s, deadline_s=deadline_s, checkpoint=stop.checkpoint
            ):
                figures.append(pair)
                if not arguments.json:
                    print(describe_pair(pair), flush=True)
        if arguments.command:
            console = Console(lambda: bool(stop.received) or time.monotonic() > deadline_s)
            ranks = stack.enter_context(Ranks(arguments.command, lab, network, console, all_to_stderr=arguments.json))
            end = ranks.run(stop, timeout_s=deadline_s - time.monotonic(), grace_s=arguments.grace_s)
            if end.timed_out:
                _say(f"stopped after --timeout-s {arguments.timeout_s:g}")
    if arguments.json:
        print(json.dumps(report(lab, arguments.command, figures, end)), flush=True)
    return end.exit_status if end else 0


def emulation_hint(lab: Lab) -> str:
    """How to get a similar effect without a lab."""
    gbps = min(link.rate_bits_per_s for link in lab.links) / 1e9
    return f"pretrain_gpt.py --emulate-link-gbps {gbps:g} --emulate-link-latency-us 50 emulates the link in the trainer"


def describe_pair(pair: PairFigures) -> str:
    """One line for a person."""
    return (
        f"host {pair.from_host} <-> host {pair.to_host}: set {pair.set_mbit_per_s:g} Mbit/s; TCP payload "
        f"{pair.there_mbit_per_s:.1f} there, {pair.back_mbit_per_s:.1f} back, "
        f"{pair.both_ways_mbit_per_s[0]:.1f} and {pair.both_ways_mbit_per_s[1]:.1f} at once; "
        f"round trip {pair.round_trip_us:.0f} us"
    )


def report(lab: Lab, command: Sequence[str], figures: Sequence[PairFigures], end: RunEnd | None) -> dict[str, object]:
    """What --json writes."""
    return {
        "kind": "linklab",
        "lab": dataclasses.asdict(lab),
        "command": list(command),
        "measured": [dataclasses.asdict(pair) for pair in figures],
        "run": {**dataclasses.asdict(end), "exit_status": end.exit_status} if end else None,
    }


def _say(text: str) -> None:
    print(f"linklab: {text}", file=sys.stderr, flush=True)
