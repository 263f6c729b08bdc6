"""An emulated link: process groups whose transfers take the time of a slow network, on machines without root.

Reading order: `link` (how long transfers take, and how they queue), `transfers` (what each operation moves), `works`
(waiting and polling), `process_group` (where it hooks in), `session` (a run with one). See docs/linklab.md.
"""

from megatron.pretrain.distributed.emulated_link.link import EmulatedLink, EmulatedTraffic, Transfer
from megatron.pretrain.distributed.emulated_link.process_group import LinkedProcessGroups
from megatron.pretrain.distributed.emulated_link.session import emulated_link, emulated_link_text

__all__ = ["EmulatedLink", "EmulatedTraffic", "LinkedProcessGroups", "Transfer", "emulated_link", "emulated_link_text"]
