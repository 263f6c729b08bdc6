"""A tiny model with overlapped recompute attached, on one rank."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from megatron.core.distributed import DistributedDataParallel

from megatron.overlap.session import OverlapSession
from megatron.overlap.settings import OverlapSettings
from megatron.pretrain.config.checks.overlap import POLICY
from megatron.pretrain.model import build_model, build_transformer_config
from overlap_recompute.plan.policy_text import parse_policy
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.runtime import Journal, StepReport
from tests.unit.model.support import CPU, VOCAB, batch, config_of

NO_LIMIT_BYTES = 1 << 40
SETTINGS = OverlapSettings(
    rank=0, stage=0, stages=1, microbatches=1, drop=parse_policy("all", 1, flag=POLICY).stages[0],
    fills=frozenset(WindowKind), prefetch_cap_bytes=NO_LIMIT_BYTES, verify=False, trace_folder=None,
    flags="", device=CPU,
)  # fmt: skip
Chunks = list[DistributedDataParallel]


def settings_of(policy: str, **others: Any) -> OverlapSettings:
    """Settings of a job of one rank."""
    return replace(SETTINGS, drop=parse_policy(policy, 1, flag=POLICY).stages[0], **others)


def model_of(*flags: str) -> Chunks:
    """A tiny model in training mode, wrapped as it trains."""
    config = config_of(*flags)
    chunks = build_model(config, build_transformer_config(config), VOCAB, CPU)
    for chunk in chunks:
        chunk.train()
    return chunks


@contextmanager
def session_of(
    chunks: Chunks, settings: OverlapSettings = SETTINGS, journal: Journal | None = None
) -> Iterator[OverlapSession]:
    """A session on the model, closed at the end."""
    session = OverlapSession(settings, chunks, journal)
    try:
        yield session
    finally:
        session.close()


def reports_of(session: OverlapSession) -> list[StepReport]:
    """A list that grows by the report of each step."""
    reports: list[StepReport] = []
    end = session.runtime.step_end

    def step_end() -> StepReport:
        reports.append(end())
        return reports[-1]

    session.runtime.step_end = step_end  # type: ignore[method-assign]
    return reports


def forward_backward(session: OverlapSession, chunk: DistributedDataParallel, microbatches: int = 1) -> None:
    """One step without an update."""
    chunk.zero_grad_buffer()
    step = session.forward_step(lambda iterator, model: (model(**batch()), None))
    with session.step():
        for _ in range(microbatches):
            output, _ = step(None, chunk)
            output.sum().backward()
            del output
