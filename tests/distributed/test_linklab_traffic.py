"""How hosts of tools/linklab send: the same on every machine."""

import pathlib
import re
import subprocess

import pytest

from tests.distributed.linklab_support import LINKLAB, python, why_not

CONTROLS = pathlib.Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
CONNECT_AND_TELL = """
import os, socket, time
address, until = (os.environ["MASTER_ADDR"], 29501), time.monotonic() + 20
def connect():
    while True:
        try:
            return socket.create_connection(address, timeout=5)
        except ConnectionRefusedError:
            if time.monotonic() > until: raise
            time.sleep(0.05)
link = socket.create_server(address).accept()[0] if os.environ["RANK"] == "0" else connect()
link.settimeout(20)
print(link.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(bytes(1)).decode())
link.sendall(b".")
link.recv(1)
"""


def test_hosts_send_with_cubic_whatever_the_machine_does() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    if "cubic" not in CONTROLS.read_text().split():
        pytest.skip("this kernel has no CUBIC")
    lab = [*LINKLAB, "--rate", "1gbit", "--timeout-s", "40", *python(CONNECT_AND_TELL)]
    done = subprocess.run(lab, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall(r"^\[rank \d\] (\w+)$", done.stdout, re.MULTILINE)) == ["cubic", "cubic"]
