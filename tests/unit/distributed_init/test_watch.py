"""Hub and watches in one process, over real sockets."""

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from megatron.pretrain.distributed import hub, last_words, liveness
from megatron.pretrain.distributed.hub import Hub
from megatron.pretrain.distributed.liveness import HubAddress, LivenessWatch, join
from megatron.pretrain.distributed.verdict import Cause, ExitCode, PeerFailure, Verdict
from megatron.pretrain.distributed.wire import encode
from overlap_recompute.plan.errors import ClusterError

WAIT_S, TIMEOUT_S = 50.0, 60.0
"""What is waited for comes in less time than a silence takes to be noticed: it has another cause."""


def wait_for(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited too long"
        time.sleep(0.005)


class Ring:
    """A hub and one watch per rank; records which exit status each watch thread asked for."""

    def __init__(self, world_size: int, timeout_s: float, settle_s: float) -> None:
        self.hub = Hub(world_size=world_size, timeout_s=timeout_s, settle_s=settle_s, bind_host="127.0.0.1")
        self.hub.start()
        self.address = HubAddress(hosts=("127.0.0.1",), port=self.hub.port, token=self.hub.token)
        self.ended: dict[int, int] = {}
        self.connections = [
            join(self.address, rank=rank, timeout_s=timeout_s, place=f"host n{rank}", hub_place="host n0")
            for rank in range(world_size)
        ]
        self.watches = [
            LivenessWatch(
                rank=rank,
                connection=connection,
                timeout_s=timeout_s,
                hub_place="host n0",
                hub=self.hub if rank == 0 else None,
                end_process=lambda code, rank=rank: self.ended.update({rank: code}),
            )
            for rank, connection in enumerate(self.connections)
        ]

    def verdicts(self, ranks: tuple[int, ...]) -> set[Verdict | None]:
        wait_for(lambda: all(self.watches[rank].verdict for rank in ranks))
        return {self.watches[rank].verdict for rank in ranks}

    def break_connection(self, rank: int) -> None:
        """What the kernel does when the process of this rank ends."""
        self.connections[rank].shutdown(socket.SHUT_RDWR)


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ring]]:
    monkeypatch.setattr(liveness, "GRACE_S", 0.05)
    monkeypatch.setattr(liveness, "LAST_RESORT_S", 0.05)
    monkeypatch.setattr(hub, "TICK_S", 0.02)
    rings: list[Ring] = []

    def make(world_size: int = 3, timeout_s: float = TIMEOUT_S, settle_s: float = 0.2) -> Ring:
        rings.append(Ring(world_size, timeout_s, settle_s))
        return rings[-1]

    yield make
    for each in rings:
        for watch in each.watches:
            if watch.verdict:
                watch._thread.join(WAIT_S)  # or its last line lands in the next test
        for watch in reversed(each.watches):
            watch._closing.set()
            watch.close() if watch.rank else None
        each.hub.close(linger_s=0)


def test_a_lost_connection_stops_the_others_and_names_the_rank(
    ring: Callable[..., Ring], capfd: pytest.CaptureFixture[str]
) -> None:
    three = ring()
    three.break_connection(2)
    (verdict,) = three.verdicts((0, 1))
    assert verdict is not None
    assert (verdict.rank, verdict.cause, verdict.place) == (2, Cause.DIED, "host n2")
    wait_for(lambda: {0, 1} <= three.ended.keys())  # rank 2 itself thinks that the hub is gone
    assert three.ended[0] == three.ended[1] == ExitCode.PEER_LOST
    printed = capfd.readouterr().err
    assert "rank 0: stopped because rank 2 (host n2) died" in printed
    assert "rank 1: stopped because rank 2 (host n2) died" in printed
    assert "was at test_watch.py" in printed


def test_last_acts_are_done_when_the_main_thread_is_stuck(ring: Callable[..., Ring]) -> None:
    three, said = ring(), []
    with three.watches[1].last_acts.added(lambda why: said.append("too late, taken back")):
        pass

    def fail(why: str) -> None:
        raise RuntimeError("a disk that is full")

    with three.watches[0].last_acts.added(fail), three.watches[0].last_acts.added(said.append):
        three.break_connection(2)
        wait_for(lambda: {0, 1} <= three.ended.keys())
    (why,) = said
    assert why.startswith("stopped because rank 2 (host n2) died") and "(this rank was at test_watch.py:" in why


def test_a_last_act_that_hangs_does_not_hold_the_end_up(
    ring: Callable[..., Ring], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_words, "ACTS_S", 0.05)
    three, hung, released = ring(), threading.Event(), threading.Event()
    with three.watches[0].last_acts.added(lambda why: (hung.set(), released.wait(WAIT_S))):
        begin_s = time.monotonic()
        three.break_connection(2)
        wait_for(lambda: 0 in three.ended)
        assert hung.is_set() and time.monotonic() - begin_s < WAIT_S / 2
        released.set()


def test_last_acts_are_left_to_a_main_thread_that_ends_by_itself(ring: Callable[..., Ring]) -> None:
    three, said = ring(), []
    with three.watches[0].last_acts.added(said.append):
        three.watches[0].report("a bad day")
        wait_for(lambda: {0, 1, 2} <= three.ended.keys())
    assert not said


def test_the_loss_of_the_hub_names_rank_0(ring: Callable[..., Ring]) -> None:
    three = ring()
    three.watches[0].place("pipeline stage 0, host n0")
    wait_for(lambda: three.watches[1]._hub_place == "pipeline stage 0, host n0")
    three.hub._close_at_s = 0.0
    for watch in three.watches[1:]:
        watch._handlers = {**watch._handlers, "goodbye": lambda _message: None}  # a killed hub says no goodbye
    (verdict,) = three.verdicts((1, 2))
    assert verdict is not None
    assert (verdict.rank, verdict.cause, verdict.place) == (0, Cause.DIED, "pipeline stage 0, host n0")


def test_a_reported_error_reaches_everybody_before_its_echo(ring: Callable[..., Ring]) -> None:
    three = ring(settle_s=WAIT_S)
    heard: dict[int, Verdict | None] = {}
    echo = threading.Thread(target=lambda: heard.update({1: three.watches[1].report("RuntimeError: gloo", echo=True)}))
    echo.start()
    time.sleep(0.05)
    heard[2] = three.watches[2].report("ValueError: boom")
    echo.join()
    assert heard[1] == heard[2]
    assert heard[2] is not None
    assert (heard[2].rank, heard[2].detail) == (2, "ValueError: boom")


def test_an_interrupted_rank_makes_the_others_leave_as_interrupted(ring: Callable[..., Ring]) -> None:
    two = ring(2)
    two.watches[1].report("Ctrl-C", cause=Cause.INTERRUPTED)
    wait_for(lambda: two.ended.get(0) == ExitCode.INTERRUPTED)


def test_a_rank_that_stops_beating_is_silent(ring: Callable[..., Ring]) -> None:
    three = ring(timeout_s=1.0)
    three.watches[1]._send_lock.acquire()  # its thread is stuck, its connection stands
    (verdict,) = three.verdicts((0, 2))
    three.watches[1]._send_lock.release()
    assert verdict is not None
    assert (verdict.rank, verdict.cause) == (1, Cause.SILENT)


def test_beats_keep_an_idle_run_alive(ring: Callable[..., Ring]) -> None:
    two = ring(2, timeout_s=1.0)
    time.sleep(2.0)
    assert [watch.verdict for watch in two.watches] == [None, None]


def test_an_announced_silence_is_no_loss(ring: Callable[..., Ring]) -> None:
    two = ring(2, timeout_s=1.0)
    with two.watches[1].quiet(), two.watches[0].quiet():
        wait_for(lambda: two.watches[1]._hub_quiet)
        two.watches[1]._send_lock.acquire()
        time.sleep(2.0)
        two.watches[1]._send_lock.release()
    assert [watch.verdict for watch in two.watches] == [None, None]


def test_finish_waits_for_the_slowest_rank(ring: Callable[..., Ring]) -> None:
    three, done = ring(), []
    threads = [threading.Thread(target=lambda w=watch: (w.finish(), done.append(w.rank))) for watch in three.watches]
    for thread in threads[:2]:
        thread.start()
    time.sleep(0.3)
    assert done == []
    threads[2].start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(done) == [0, 1, 2]
    for watch in reversed(three.watches):
        watch.close()
    assert three.ended == {}
    assert not three.hub._thread.is_alive()


def test_finish_ends_when_a_rank_is_lost_instead(ring: Callable[..., Ring], capfd: pytest.CaptureFixture[str]) -> None:
    two = ring(2)
    threading.Timer(0.2, lambda: two.break_connection(1)).start()
    with pytest.raises(PeerFailure, match="rank 1"):
        two.watches[0].finish()
    wait_for(lambda: 0 in two.ended)
    assert capfd.readouterr().err.count("rank 0: stopped because rank 1") == 1


def test_strangers_neither_join_nor_disturb(ring: Callable[..., Ring]) -> None:
    two = ring(2)
    for data in (b"GET / HTTP/1.1\r\n\r\n", encode("hello", rank=1, token="wrong", place="x"), encode("beat")):
        with socket.create_connection(("127.0.0.1", two.hub.port), timeout=WAIT_S) as stranger:
            stranger.sendall(data)
            assert stranger.recv(100) == b""
    with socket.create_connection(("127.0.0.1", two.hub.port), timeout=WAIT_S) as stranger:
        stranger.sendall(encode("hello", rank=7, token=two.hub.token, place="x"))
        assert stranger.recv(100) == b""
    time.sleep(0.3)
    assert [watch.verdict for watch in two.watches] == [None, None]


def test_a_hub_out_of_reach_is_a_clear_error() -> None:
    told = r"rank 3 \(host n3\) cannot reach the liveness port.*rank 0 \(host n0\)"
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # nobody listens, and nobody else can
        address = HubAddress(hosts=("127.0.0.1",), port=silent.getsockname()[1], token="")
        with pytest.raises(ClusterError, match=told):
            join(address, rank=3, timeout_s=5, place="host n3", hub_place="host n0")
