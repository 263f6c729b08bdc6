"""A run whose process groups talk over an emulated link, if its options ask for one."""

import contextlib
import logging
from collections.abc import Iterator

from megatron.pretrain.config import DistributedOptions
from megatron.pretrain.distributed.emulated_link.link import EmulatedLink
from megatron.pretrain.distributed.emulated_link.process_group import LinkedProcessGroups

logger = logging.getLogger(__name__)


def emulated_link_text(options: DistributedOptions) -> str:
    """What profiles and traces say about the link; empty where it is real."""
    if options.emulate_link_gbps is None:
        return ""
    return (
        f"the link between ranks was emulated, {options.emulate_link_gbps:g} Gbit/s each way and "
        f"{options.emulate_link_latency_us:g} us"
    )


@contextlib.contextmanager
def emulated_link(options: DistributedOptions) -> Iterator[EmulatedLink | None]:
    """Within, all transfers take the time of the link of `--emulate-link-gbps`; without the flag nothing changes.

    Yields:
        The link of this rank; None without the flag.
    """
    if options.emulate_link_gbps is None:
        yield None
        return
    link = EmulatedLink(options.emulate_link_gbps, options.emulate_link_latency_us)
    with LinkedProcessGroups(link):
        logger.info("%s: from here on transfers take its time, not that of a real network", link.describe())
        try:
            yield link
        finally:
            logger.info("%s", link.traffic().describe())
