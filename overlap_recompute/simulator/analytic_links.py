"""How long communication takes on hardware that one does not have: alpha-beta models of rings, trees and transfers.

    symbol  meaning                                              from
    p       ranks of the group                                   `RankGroup.ranks`
    m       nodes that the group reaches into                    `RankGroup.nodes`
    n       bytes of the whole tensor                            argument
    B       bytes a microsecond into each rank                   within a node: the node's link; else see rule 2
    a       launch of a collective                               `collective_launch_us`
    L       time of the p - 1 steps around the ring              p - m within nodes, m - 1 between them

1. ring: all_gather and reduce_scatter a + L + (p - 1)/p n/B; all_reduce twice the steps, a + 2L + 2 (p - 1)/p n/B.
   tree: all_reduce a + 2 ceil(log2 p) hops + 2 n/B. An all_reduce takes whichever is less.
2. A ring through several nodes enters each node once, over the network cards of the group's ranks there: B is a rank's
   share of its node's network times the group's ranks in a node, but no more than the node's link. The other ranks of
   the node use theirs at the same time: groups of one kind communicate together.
3. all_to_all: a rank sends (p - 1)/p n, to ranks of its node over the link, to others over its share of the network,
   both at once.
4. send: one rank to one rank.
"""

import math
from dataclasses import dataclass

from overlap_recompute.plan.profile import SEND, LinkFit
from overlap_recompute.simulator.hardware import MIB, Hardware

ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL = "all_reduce", "all_gather", "reduce_scatter", "all_to_all"
_FIT_BYTES = tuple(MIB << shift for shift in range(0, 8, 2))
"""Sizes of a `LinkFit`'s points: activations of large models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankGroup:
    """Ranks that communicate, `stride` ranks apart on nodes of `gpus_per_node`."""

    ranks: int
    """Of the group."""
    stride: int
    """Distance in global rank between neighbours: the product of the parallel sizes that vary faster."""
    gpus_per_node: int
    """Of the hardware."""

    @property
    def per_node(self) -> int:
        """Ranks of the group in one node."""
        return min(self.ranks, max(1, self.gpus_per_node // self.stride))

    @property
    def nodes(self) -> int:
        """Nodes that the group reaches into."""
        return -(-self.ranks // self.per_node)


def group_bytes_per_us(hardware: Hardware, group: RankGroup) -> float:
    """B of the head of this file."""
    if group.nodes == 1:
        return hardware.node_bytes_per_us
    return min(hardware.node_bytes_per_us, hardware.network_bytes_per_us * group.per_node)


def collective_us(hardware: Hardware, group: RankGroup, name: str, nbytes: int) -> float:
    """Time of a collective over a tensor of `nbytes` (all ranks' parts together); 0 within one rank."""
    return 0.0 if group.ranks == 1 else _COLLECTIVES[name](hardware, group, nbytes)


def send_us(hardware: Hardware, nbytes: int, *, within_node: bool) -> float:
    """Time of a transfer from one rank to another."""
    speed = hardware.node_bytes_per_us if within_node else hardware.network_bytes_per_us
    hop_us = hardware.node_hop_us if within_node else hardware.network_hop_us
    return hardware.collective_launch_us + hop_us + nbytes / speed


def collective_fit(hardware: Hardware, group: RankGroup, name: str) -> LinkFit:
    """The straight line through the times of the smallest and the largest of a few sizes."""
    return _fit(name, tuple((nbytes, collective_us(hardware, group, name, nbytes)) for nbytes in _FIT_BYTES))


def send_fit(hardware: Hardware, *, within_node: bool) -> LinkFit:
    """The line of a transfer, which is straight."""
    return _fit(SEND, tuple((nbytes, send_us(hardware, nbytes, within_node=within_node)) for nbytes in _FIT_BYTES))


def _fit(name: str, points: tuple[tuple[int, float], ...]) -> LinkFit:
    (few, short_us), (many, long_us) = points[0], points[-1]
    beta = (long_us - short_us) / (many - few)
    return LinkFit(name=name, alpha_us=max(0.0, short_us - few * beta), beta_us_per_byte=beta, points=points)


def _ring_us(hardware: Hardware, group: RankGroup, nbytes: int) -> float:
    """Once around, without the launch."""
    part = nbytes * (group.ranks - 1) / group.ranks
    hops_us = (group.ranks - group.nodes) * hardware.node_hop_us + (group.nodes - 1) * hardware.network_hop_us
    return hops_us + part / group_bytes_per_us(hardware, group)


def _half_ring(hardware: Hardware, group: RankGroup, nbytes: int) -> float:
    return hardware.collective_launch_us + _ring_us(hardware, group, nbytes)


def _all_reduce(hardware: Hardware, group: RankGroup, nbytes: int) -> float:
    ring_us = 2 * _ring_us(hardware, group, nbytes)
    deep = math.ceil(math.log2(group.ranks))
    hop_us = hardware.node_hop_us if group.nodes == 1 else hardware.network_hop_us
    tree_us = 2 * deep * hop_us + 2 * nbytes / group_bytes_per_us(hardware, group)
    return hardware.collective_launch_us + min(ring_us, tree_us)


def _all_to_all(hardware: Hardware, group: RankGroup, nbytes: int) -> float:
    each = nbytes / group.ranks
    near_us = each * (group.per_node - 1) / hardware.node_bytes_per_us
    far_us = each * (group.ranks - group.per_node) / hardware.network_bytes_per_us
    hop_us = hardware.node_hop_us if group.nodes == 1 else hardware.network_hop_us
    return hardware.collective_launch_us + hop_us + max(near_us, far_us)


_COLLECTIVES = {
    ALL_REDUCE: _all_reduce,
    ALL_GATHER: _half_ring,
    REDUCE_SCATTER: _half_ring,
    ALL_TO_ALL: _all_to_all,
}
