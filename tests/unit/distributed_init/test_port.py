"""The rendezvous port of a launch."""

import socket

import pytest

from megatron.pretrain.config.world import World
from megatron.pretrain.distributed.rendezvous import meet
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
