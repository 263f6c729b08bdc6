"""How a measurement begins: with everything dropped where the model could be counted, else as plain training."""

import json
import logging
from collections.abc import Sequence

import torch
from megatron.core.distributed import DistributedDataParallel

from megatron.overlap.measuring.gather import gather_bytes
from megatron.overlap.measuring.session import MeasuringSession
from overlap_recompute.plan.codec import from_data, to_text
from overlap_recompute.plan.counted import COUNTED_VERSION, CountedModel

logger = logging.getLogger(__name__)


def shared_counted(counted: CountedModel | None, device: torch.device) -> CountedModel | None:
    """What rank 0 has counted, on every rank; collective over the whole job."""
    text = gather_bytes(b"" if counted is None else to_text(counted).encode(), device)[0]
    return from_data(json.loads(text), CountedModel, COUNTED_VERSION, "the model counted on rank 0") if text else None


def lean_session(
    chunks: Sequence[DistributedDataParallel],
    device: torch.device,
    counted: CountedModel | None,
    *,
    delays_weight_gradients: bool = False,
) -> MeasuringSession:
    """A session that drops every unit; one of plain training where no rank could without; collective.

    Args:
        chunks: the model chunks of this rank.
        device: where they are.
        counted: the same on every rank; None: it could not be counted.
        delays_weight_gradients: as `MeasuringSession`.
    """
    why = "the model could not be counted"
    if counted is not None:
        session = MeasuringSession(chunks, device, counted, delays_weight_gradients=delays_weight_gradients)
        if all(gather_bytes(b"known" if session.is_known else b"", device)):
            return session
        session.close()
        why = "the model that was counted has other layers"
    logger.warning(
        "iterations are measured without recompute, in the memory that this takes, because %s; where that is too much, "
        "measure with fewer microbatches (--global-batch-size) and plan from the profile",
        why,
    )
    return MeasuringSession(chunks, device, delays_weight_gradients=delays_weight_gradients)
