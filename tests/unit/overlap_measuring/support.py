"""A tiny model that is measured on one rank."""

from megatron.core.distributed import DistributedDataParallel

from megatron.overlap.measuring.session import MeasuringSession
from overlap_recompute.plan.counted import CountedModel
from tests.unit.model.support import CPU, EXPERTS, batch
from tests.unit.overlap.support import model_of

COUNTED = ("--attention-dropout 0.1 --hidden-dropout 0.1", "--position-embedding-type rope --swiglu", EXPERTS)
"""Flags of models that are measured with everything dropped."""


def run(session: MeasuringSession, chunk: DistributedDataParallel, *, iterations: int, microbatches: int = 2) -> None:
    """Iterations without an update; the first one, which is probed, does not count."""
    step = session.forward_step(lambda iterator, model: (model(**batch()), lambda output: output.sum()))
    for number in range(iterations + 1):
        chunk.zero_grad_buffer()
        with session.iteration(number > 0), session.step():
            for _ in range(microbatches):
                output, loss = step(None, chunk)
                loss(output).backward()
        session.sort()


def measured(*flags: str, iterations: int = 2, counted: CountedModel | None = None) -> MeasuringSession:
    """A session that has ended, with its samples; with a counted model every unit was dropped."""
    chunks = model_of(*flags)
    session = MeasuringSession(chunks, CPU, counted=counted)
    run(session, chunks[0], iterations=iterations)
    session.close()
    return session
