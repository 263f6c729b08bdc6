"""The page for Prometheus, fetched over real connections on the loopback device."""

import http.client
import json
import math
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from overlap_recompute.cli.main import main
from overlap_recompute.cli.watching import endpoint as endpoint_module
from overlap_recompute.cli.watching.alarms import ALARM_NAMES, Alarm
from overlap_recompute.cli.watching.endpoint import MOST_CONNECTIONS, Endpoint
from overlap_recompute.cli.watching.exposition import exposition
from overlap_recompute.plan.errors import ConfigError
from tests.unit.cli.watch_support import glance_of, run_line, sample_line, write_run

WAIT_S = 60.0

HALF = [run_line(), *(sample_line(n) for n in range(1, 21))]
_VALUE = re.compile(r'([a-z_]+)\{((?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)*)\} (NaN|[+-]Inf|-?[0-9.e+-]+)')


def parse(text: str) -> dict[tuple[str, str], float]:
    """Read a page as strictly as the format is written: every value under its HELP and TYPE, each family once."""
    assert text.endswith("\n")
    values: dict[tuple[str, str], float] = {}
    families: list[str] = []
    helped = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped = line.split(" ", 3)[2]
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert (name, kind) == (helped, "gauge")
            assert name not in families
            families.append(name)
        else:
            match = _VALUE.fullmatch(line)
            assert match, line
            assert match[1] == families[-1]
            assert (match[1], match[2]) not in values
            values[match[1], match[2]] = float(match[3])
    return values


def get(endpoint: Endpoint, path: str = "/metrics", method: str = "GET") -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=WAIT_S)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()
    finally:
        connection.close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint("127.0.0.1", 0) as served:
        yield served


def test_the_page_has_every_figure_in_base_units() -> None:
    values = parse(exposition("runs/a", glance_of(HALF), [Alarm(name="stalled", message="")]))
    run = 'run="runs/a"'
    assert values["overlap_recompute_iteration", run] == 20
    assert values["overlap_recompute_iteration_seconds", run] == pytest.approx(0.4)
    assert values["overlap_recompute_flops_per_second_per_rank", run] == pytest.approx(1.25e10)
    assert values["overlap_recompute_exposed_recompute_seconds", run] == pytest.approx(0.01)
    assert values["overlap_recompute_window_filled_seconds", run + ',kind="pp_wait"'] == pytest.approx(0.03)
    assert values["overlap_recompute_stage_memory_bytes", run + ',stage="1",figure="held_peak"'] == 2 << 20
    assert values["overlap_recompute_predicted_iteration_seconds", run] == pytest.approx(0.4)
    assert values["overlap_recompute_bubble_ratio", run] == 0.125
    assert values["overlap_recompute_run_state", run + ',state="running"'] == 1
    alarms = {name: values["overlap_recompute_alarm", f'{run},alarm="{name}"'] for name in ALARM_NAMES}
    assert alarms == {name: float(name == "stalled") for name in ALARM_NAMES}


def test_labels_are_escaped_and_what_is_not_finite_has_its_own_words() -> None:
    glance = glance_of(
        [run_line(), sample_line(1, loss="nan", grad_norm="inf", learning_rate="-inf", tokens_per_s=None)]
    )
    text = exposition('a\\b"c\nd', glance, [])
    values = parse(text)
    assert r'run="a\\b\"c\nd"' in text
    run = r'run="a\\b\"c\nd"'
    assert math.isnan(values["overlap_recompute_loss", run])
    assert values["overlap_recompute_grad_norm", run] == math.inf
    assert values["overlap_recompute_learning_rate", run] == -math.inf
    assert "tokens_per_second" not in text


def test_before_the_first_line_there_is_a_page_too() -> None:
    values = parse(exposition("a", glance_of([]), []))
    assert values["overlap_recompute_run_state", 'run="a",state="no file"'] == 1


def test_only_get_of_one_page(endpoint: Endpoint) -> None:
    endpoint.publish("page 1\n")
    status, headers, text = get(endpoint)
    assert (status, text) == (200, "page 1\n")
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    endpoint.publish("page 2\n")
    assert get(endpoint, "/metrics?a=b")[2] == "page 2\n"
    assert get(endpoint, "/")[0] == 404
    assert get(endpoint, "/../etc/passwd")[0] == 404
    for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS", "BREW"):
        status, headers, _ = get(endpoint, method=method)
        assert (status, headers["Allow"]) == (405, "GET")


def test_nonsense_is_answered_and_the_server_lives_on(endpoint: Endpoint) -> None:
    for nonsense in (b"\r\n\r\n", b"GET\r\n\r\n", b"\xff" * 100 + b"\r\n\r\n", b"GET /metrics HTTP/9\r\n\r\n"):
        with socket.create_connection((endpoint.host, endpoint.port), timeout=WAIT_S) as caller:
            caller.sendall(nonsense)
            assert b"200" not in caller.recv(1000).split(b"\r\n")[0]
    long = b"GET /" + b"x" * 70_000
    with socket.create_connection((endpoint.host, endpoint.port), timeout=WAIT_S) as caller:
        caller.sendall(long + b" HTTP/1.1\r\n\r\n")
        assert b" 414 " in caller.recv(1000)
    assert get(endpoint)[0] == 200


def until_answered(endpoint: Endpoint) -> None:
    """Ask until somebody has time."""
    deadline_s = time.monotonic() + WAIT_S
    while get(endpoint)[0] != 200:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_too_many_callers_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "REQUEST_S", WAIT_S)
    with ExitStack() as callers, Endpoint("127.0.0.1", 0) as endpoint:
        for _ in range(MOST_CONNECTIONS):
            caller = socket.create_connection((endpoint.host, endpoint.port), timeout=WAIT_S)
            callers.enter_context(caller).sendall(b"GET /metr")
        assert get(endpoint)[0] == 503
        callers.close()
        until_answered(endpoint)


def test_slow_callers_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that drip in do not buy time: the caller would go on for as long as it is listened to."""
    monkeypatch.setattr(endpoint_module, "REQUEST_S", 0.3)
    with Endpoint("127.0.0.1", 0) as endpoint, socket.create_connection((endpoint.host, endpoint.port)) as caller:
        caller.settimeout(0.05)
        begin_s, cut = time.monotonic(), False
        while not cut:
            assert time.monotonic() - begin_s < WAIT_S, "it still listens"
            with suppress(TimeoutError):
                try:
                    caller.sendall(b"G")
                    cut = caller.recv(100) == b""
                except ConnectionError:
                    cut = True
        assert time.monotonic() - begin_s >= 0.3
        until_answered(endpoint)


def test_a_port_in_use_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, HALF)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["watch", str(tmp_path), "--once", "--prometheus-port", str(port)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"overlap-recompute: found --prometheus-port {port} on 127.0.0.1, where nothing")
    assert "Address already in use" in captured.err
    assert captured.err.endswith("choose another port, or 0 for any free one.\n")


def test_a_host_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"on 192\.0\.2\.1, where nothing can be served"):
        Endpoint("192.0.2.1", 0)


def test_an_address_that_others_can_reach_is_warned_about(endpoint: Endpoint) -> None:
    assert not endpoint.is_open_to_others
    with Endpoint("0.0.0.0", 0) as served:
        assert served.is_open_to_others


def test_the_subcommand_serves_what_it_watches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path, HALF)
    words = ["watch", str(tmp_path), "--json", "--until-done", "--interval-s", "0.05", "--prometheus-port", "0"]
    found: list[dict[tuple[str, str], float]] = []

    def scrape() -> None:
        deadline_s = time.monotonic() + WAIT_S
        try:
            while not (match := re.search(r":(\d+)/metrics", "".join(said))) and time.monotonic() < deadline_s:
                said.append(capsys.readouterr().err)
                time.sleep(0.05)
            assert match
            connection = http.client.HTTPConnection("127.0.0.1", int(match[1]), timeout=WAIT_S)
            connection.request("GET", "/metrics")
            found.append(parse(connection.getresponse().read().decode()))
            connection.close()
        finally:
            with path.open("ab") as stream:
                stream.write(sample_line(100) + b"\n")

    said: list[str] = []
    thread = threading.Thread(target=scrape)
    thread.start()
    assert main(words) == 0
    thread.join()
    assert found[0]["overlap_recompute_iteration", f'run="{tmp_path}"'] == 20
    assert all(json.loads(line) for line in capsys.readouterr().out.splitlines())
