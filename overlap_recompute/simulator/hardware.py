"""Hardware for the analytic cost model: one record per kind of node, by name or from the user's file.

Named hardware stands in `hardware_table.py`, with a source for every figure; `docs/hardware.md` explains the fields.
"""

import dataclasses
import difflib
import re
from dataclasses import dataclass

from overlap_recompute.plan.errors import UserError

GIB, MIB = 1 << 30, 1 << 20
BITS_PER_BYTE = 8
US_PER_S = 1e6
_NETWORK = re.compile(r"([0-9]+(?:\.[0-9]+)?)gbit-(gpu|node)")
NETWORK_FORM = "<name>/<number>gbit-gpu or <name>/<number>gbit-node"


class HardwareError(UserError):
    """Hardware that is not known, or a file that does not describe one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Equal nodes of equal GPUs, joined by a network. Giga is 10^9, GiB is 2^30 bytes; bandwidths are one way."""

    name: str
    """For people."""
    peak_tflops: float
    """Of one GPU in bf16, dense, by the data sheet."""
    gemm_efficiency: float
    """Fraction of the peak that large matrix products reach; 0 to 1."""
    attention_forward_efficiency: float
    """The same for the forward pass of flash attention over a long sequence."""
    attention_backward_efficiency: float
    """The same for its backward pass."""
    streaming_multiprocessors: int
    """Of one GPU: product tiles run in waves of so many."""
    memory_gib: float
    """Of one GPU, as programs see it."""
    memory_gbyte_per_s: float
    """By the data sheet."""
    memory_efficiency: float
    """Fraction of it that streaming kernels reach; 0 to 1."""
    kernel_launch_us: float
    """No kernel takes less."""
    gpus_per_node: int
    """GPUs of one node."""
    node_link_gbyte_per_s: float
    """Per GPU, that collectives within a node reach ("busbw" of nccl-tests)."""
    node_hop_us: float
    """A step of a collective between GPUs of a node."""
    collective_launch_us: float
    """Of any collective, before its first step."""
    network_gbit_per_s_per_node: float
    """All network cards of a node together, by the data sheet."""
    network_efficiency: float
    """Fraction of it that collectives reach; 0 to 1."""
    network_hop_us: float
    """A step of a collective between nodes."""
    context_gib: float
    """Memory of a process on its GPU before the model exists: driver context, libraries, workspaces."""
    communicator_mib: float
    """Buffers of one process group's communicator."""
    power_w: float
    """Of one GPU under load: the data sheet's limit."""
    usd_per_gpu_hour: float
    """Price. An assumption: prices differ between sellers and change within weeks."""

    @property
    def flops_per_us(self) -> float:
        """Of one GPU at its peak."""
        return self.peak_tflops * 1e12 / US_PER_S

    @property
    def memory_bytes(self) -> int:
        """Of one GPU, as programs see it."""
        return int(self.memory_gib * GIB)

    @property
    def memory_bytes_per_us(self) -> float:
        """That streaming kernels reach."""
        return self.memory_gbyte_per_s * self.memory_efficiency * 1e9 / US_PER_S

    @property
    def node_bytes_per_us(self) -> float:
        """Per GPU within a node."""
        return self.node_link_gbyte_per_s * 1e9 / US_PER_S

    @property
    def network_bytes_per_us(self) -> float:
        """A GPU's share of its node's network, as collectives reach it."""
        gbit_per_s = self.network_gbit_per_s_per_node * self.network_efficiency / self.gpus_per_node
        return gbit_per_s * 1e9 / BITS_PER_BYTE / US_PER_S


def with_network(hardware: Hardware, text: str, *, flag: str) -> Hardware:
    """The same nodes on another network.

    Args:
        hardware: the nodes.
        text: such as `100gbit-node` (all GPUs of a node share it) or `200gbit-gpu`.
        flag: what to call it in messages.

    Raises:
        HardwareError: the text is of another form.
    """
    match = _NETWORK.fullmatch(text.lower())
    if match is None or float(match[1]) <= 0:
        raise HardwareError(f"{flag} with the network {text!r}", NETWORK_FORM, "write for example /200gbit-gpu")
    gbit_per_s = float(match[1]) * (hardware.gpus_per_node if match[2] == "gpu" else 1)
    name = f"{hardware.name}/{text.lower()}"
    return dataclasses.replace(hardware, name=name, network_gbit_per_s_per_node=gbit_per_s)


def pick_hardware(table: tuple[Hardware, ...], text: str, *, flag: str) -> Hardware:
    """Hardware of a table by name, with another network if the text ends in one.

    Args:
        table: hardware to choose from.
        text: a name, or a name with a network (`NETWORK_FORM`).
        flag: what to call it in messages.

    Raises:
        HardwareError: there is none of this name; the message has the nearest.
    """
    name, slash, network = text.partition("/")
    named = {hardware.name: hardware for hardware in table}
    if name not in named:
        spelled = name.lower().replace("_", "-")
        begins = [known for known in named if spelled and known.startswith(spelled)]
        near = begins or difflib.get_close_matches(spelled, named, n=1, cutoff=0.4)
        hint = f"write {' or '.join(near)} if that was meant" if near else ""
        raise HardwareError(
            f"{flag} {text!r}, which is no known hardware",
            f"one of {', '.join(named)}, or a file that ends in .yaml",
            hint or "correct the name, or describe yours (docs/hardware.md)",
        )
    return with_network(named[name], network, flag=flag) if slash else named[name]
