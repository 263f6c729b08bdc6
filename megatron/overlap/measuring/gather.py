"""Records of all ranks on every rank, as JSON text in tensors."""

import json

import torch
from torch import distributed

from megatron.overlap.measuring.records import RECORD_VERSION, RankRecord
from overlap_recompute.plan.codec import from_data, to_text


def gather_records(record: RankRecord | None, device: torch.device) -> list[RankRecord]:
    """The records of all ranks that have one, in the order of ranks; collective over the whole job."""
    mine = b"" if record is None else to_text(record).encode()
    texts = gather_bytes(mine, device)
    return [
        from_data(json.loads(text), RankRecord, RECORD_VERSION, f"the record of rank {rank}")
        for rank, text in enumerate(texts)
        if text
    ]


def gather_bytes(content: bytes, device: torch.device) -> list[bytes]:
    """What every rank gave; collective over the whole job."""
    ranks = distributed.get_world_size()
    if ranks == 1:
        return [content]
    lengths = torch.zeros(ranks, dtype=torch.int64, device=device)
    lengths[distributed.get_rank()] = len(content)
    distributed.all_reduce(lengths)
    longest = max(1, int(lengths.max()))
    padded = torch.zeros(longest, dtype=torch.uint8)
    if content:
        padded[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    everything = torch.empty(ranks * longest, dtype=torch.uint8, device=device)
    distributed.all_gather_into_tensor(everything, padded.to(device))
    rows = everything.cpu().view(ranks, longest)
    return [bytes(row[:length].tolist()) for row, length in zip(rows, lengths.tolist(), strict=True)]
