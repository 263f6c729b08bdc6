"""A process that has imported what every rank imports, and forks the ranks of the tests: `python -m` this file.

Importing torch and megatron-core takes a rank some seconds of a core, more than most tests compute. Here it is paid
once. A forked rank then runs its program from the beginning, as a new interpreter would: with its own arguments,
environment, output file and process group.

It is asked on standard input and tells on standard output, a JSON object a line:

    asked  {"number": 7, "argv": ["-m", "module", ...] or ["program.py", ...], "env": {...}, "output": PATH}
    tells  {"number": 7, "pid": 1234}, and at the end of the rank {"number": 7, "status": EXIT_STATUS or -SIGNAL}

When its input ends, it kills the ranks that are left and ends too.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import sys
from typing import Any

from megatron.pretrain.platform import install_platform

ENVIRON = dict(os.environ)
IMPORTED = (
    "megatron.pretrain.main",
    "megatron.pretrain.data.checks",
    "megatron.pretrain.training.run",
    "torch._dynamo",
)
"""Nothing of overlapped recompute: a run without it loads none of it."""

Request = dict[str, Any]


def serve() -> Request | None:
    """Fork ranks until the input ends. Returns twice: in each rank what it is to run, here None at the end."""
    running: dict[int, tuple[int, int]] = {}  # by the descriptor of a process: its number and process id
    pending = b""
    while True:
        ready, _, _ = select.select([0, *running], [], [])
        for descriptor in set(ready) - {0}:
            number, pid = running.pop(descriptor)
            os.close(descriptor)
            _, status = os.waitpid(pid, 0)
            _tell(number=number, status=os.waitstatus_to_exitcode(status))
        if 0 not in ready:
            continue
        block = os.read(0, 1 << 16)
        if not block:
            break
        *lines, pending = (pending + block).split(b"\n")
        for request in map(json.loads, lines):
            pid = os.fork()
            if pid == 0:
                for descriptor in running:
                    os.close(descriptor)
                return request
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.setpgid(pid, pid)
            running[os.pidfd_open(pid)] = request["number"], pid
            _tell(number=request["number"], pid=pid)
    for _, pid in running.values():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return None


def _tell(**facts: int) -> None:
    os.write(1, json.dumps(facts).encode() + b"\n")


def run(request: Request) -> None:
    """Be the rank: what `python ARGV...` does in a new process."""
    with contextlib.suppress(PermissionError):
        os.setpgid(0, 0)
    output = os.open(request["output"], os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(output)
    os.close(nothing)
    for name in ENVIRON.keys() - request["env"].keys():
        del os.environ[name]
    os.environ.update(request["env"])  # what an import has added stays
    kind, *words = request["argv"]
    if kind == "-m":
        module, *words = words
        sys.argv[1:] = words
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv[1:] = words
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    install_platform("gloo")
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a rank that collects garbage then copies no page for it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if (asked := serve()) is not None:
        run(asked)
