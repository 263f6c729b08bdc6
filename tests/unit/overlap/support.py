"""A tiny model with overlapped recompute attached, on one rank."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megatron.overlap.session import OverlapSession
from megatron.overlap.settings import OverlapSettings
from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.config.checks.overlap import POLICY
from megatron.pretrain.model import build_model, build_transformer_config
from overlap_recompute.plan.policy_text import parse_policy
from overlap_recompute.runtime import Journal
from tests.unit.model.support import CPU, VOCAB, batch, config_of

EVERYTHING_AHEAD = 1 << 40


def settings_of(
    policy: str = "all", *, verify: bool = False, trace_folder: Path | None = None, serialize: bool = False
) -> OverlapSettings:
    """Settings of a job of one rank."""
    return OverlapSettings(
        rank=0,
        stage=0,
        stages=1,
        microbatches=1,
        drop=parse_policy(policy, 1, flag=POLICY).stages[0],
        serialize=serialize,
        prefetch_cap_bytes=EVERYTHING_AHEAD,
        verify=verify,
        trace_folder=trace_folder,
        flags=policy,
        device=CPU,
    )


def model_of(*flags: str) -> tuple[PretrainConfig, list[torch.nn.Module]]:
    """A tiny model in training mode, wrapped as it trains."""
    config = config_of(*flags)
    chunks = build_model(config, build_transformer_config(config), VOCAB, CPU)
    for chunk in chunks:
        chunk.train()
    return config, chunks


@contextmanager
def session_of(
    chunks: list[torch.nn.Module], settings: OverlapSettings | None = None, journal: Journal | None = None
) -> Iterator[OverlapSession]:
    """A session on the model."""
    session = OverlapSession(settings or settings_of(), chunks, journal)
    try:
        yield session
    finally:
        session.close()


def forward_backward(session: OverlapSession, chunk: torch.nn.Module, microbatches: int = 1) -> None:
    """One step without an update."""
    chunk.zero_grad_buffer()
    step = session.forward_step(lambda iterator, model: (model(**batch()), None))
    with session.step():
        for _ in range(microbatches):
            output, _ = step(None, chunk)
            output.sum().backward()
            del output
