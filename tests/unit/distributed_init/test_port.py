"""The rendezvous port of a launch."""

import socket

import pytest

from megatron.pretrain.config.world import World
from megatron.pretrain.distributed.rendezvous import _await_port, meet
from overlap_recompute.plan.errors import ClusterError


def test_a_port_in_use_is_one_sentence() -> None:
    """Rank 0 hosts the store; somebody else listens at its port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError) as found:
            meet(World(world_size=2, master_port=port), {}, timeout_s=2.0, liveness_timeout_s=2.0)
    told = str(found.value)
    assert told.startswith(f"found rank 0 cannot open the rendezvous port on 127.0.0.1:{port}")
    assert "choose another MASTER_PORT" in told and "\n" not in told


def test_another_program_at_the_port_does_not_hold_the_other_ranks() -> None:
    """torch's client would wait for its first answer for ever."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        world = World(rank=1, world_size=2, local_rank=1, master_port=taken.getsockname()[1])
        with pytest.raises(ClusterError) as found:
            meet(world, {}, timeout_s=0.5, liveness_timeout_s=2.0)
    assert "within 0.5 s (a program that listens there does not answer as a store does)" in str(found.value)


def test_a_connection_of_a_port_with_itself_is_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system makes of a connection to a port that it has just handed out for its other end."""

    def bound_to(address: tuple[str, int]) -> socket.socket:
        itself = socket.socket()
        itself.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        itself.bind(address)
        return itself

    def connect_from_there(address: tuple[str, int], timeout: float) -> socket.socket:
        itself = bound_to(address)
        itself.connect(address)
        return itself

    with bound_to(("127.0.0.1", 0)) as holder:  # nobody else is given the port meanwhile
        world = World(rank=1, world_size=2, master_addr="127.0.0.1", master_port=holder.getsockname()[1])
        monkeypatch.setattr(socket, "create_connection", connect_from_there)
        with pytest.raises(ConnectionRefusedError, match="this rank itself"):
            _await_port(world, timeout_s=0.01)
